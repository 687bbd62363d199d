// The API's document in Swagger UI, with the key of this tab.

import { ApiError, get } from "./api.js";
import { key } from "./state.js";

try {
  const spec = await get("/openapi.json");
  /** @type {any} */ (window).SwaggerUIBundle({
    dom_id: "#document",
    spec,
    deepLinking: true,
    validatorUrl: null,
    requestInterceptor: (request) => {
      if (key.value) request.headers.Authorization ??= `Bearer ${key.value}`;
      return request;
    },
  });
} catch (error) {
  const told = document.createElement("p");
  told.className = "refused";
  const message = error instanceof Error ? error.message : String(error);
  const unknown = error instanceof ApiError && [401, 403].includes(error.status);
  told.textContent = unknown ? `${message} Type the admin key into the console first; it is kept for this tab.` : message;
  document.getElementById("document")?.append(told);
}
