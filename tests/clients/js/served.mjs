// The server under test, and a gate in front of it. Both come from the test that runs these files.
import http from "node:http";

export const url = process.env.AMALGAM_TEST_URL;
export const key = process.env.AMALGAM_TEST_KEY;
export const alias = process.env.AMALGAM_TEST_ALIAS;
export const HI = [{ role: "user", content: "Say one word." }];
export const FORMS = [
  ["smollm2", "smollm2"],
  ["sql", "sql@1"],
  ["sql@1", "sql@1"],
  [alias, "sql@1"],
  ["0.5*sql + 0.5*json", /^blend@/],
];
export const CITY = {
  type: "object",
  properties: { city: { enum: ["Oslo", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};

// Whether the answer's model is the one that the asked name stands for.
export function isServedAs(model, served) {
  return typeof served === "string" ? model === served : served.test(model);
}

// The sum of a gauge over all of its labels.
async function gauge(name) {
  const page = await (await fetch(`${url}/metrics`)).text();
  const lines = page.split("\n").filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
}

// Resolves once nothing runs for anybody; rejects after ten seconds.
export async function idle() {
  for (let i = 0; i < 100; i++) {
    const engine = (await gauge("vllm:num_requests_running")) + (await gauge("vllm:num_requests_waiting"));
    if (engine + (await gauge("amalgam_requests_running")) === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error("the server still works for a client that left");
}

// Answers the first request with `status` and Retry-After: 1, and passes all later ones to the real server.
export async function gateThatRefusesOnce(status) {
  const arrivals = [];
  const gate = http.createServer((request, response) => {
    arrivals.push(performance.now());
    if (arrivals.length === 1) {
      request.resume();
      response.writeHead(status, { "content-type": "application/json", "retry-after": "1" });
      const message = "Too many at once. Try again in 1 s.";
      response.end(JSON.stringify({ error: { message, type: "rate_limit_error", param: null, code: "too_many_requests" } }));
      return;
    }
    const onward = http.request(url + request.url, { method: request.method, headers: request.headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    request.pipe(onward);
  });
  await new Promise((resolve) => gate.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${gate.address().port}`,
    arrivals,
    close: () => {
      gate.close();
      gate.closeAllConnections();
    },
  };
}
