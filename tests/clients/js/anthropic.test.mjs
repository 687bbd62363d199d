// Anthropic's client: messages, their streams, tools and counts.
import assert from "node:assert/strict";
import { test } from "node:test";

import Anthropic from "@anthropic-ai/sdk";

import { CITY, FORMS, HI, gateThatRefusesOnce, idle, isServedAs, key, url } from "./served.mjs";

const client = new Anthropic({ baseURL: url, apiKey: key, authToken: null, maxRetries: 0, timeout: 120_000 });
const SHORT = { messages: HI, max_tokens: 4 };
const WEATHER = { name: "weather", description: "The weather in a city.", input_schema: CITY, strict: true };
const FORCED = { messages: HI, max_tokens: 128, tools: [WEATHER], tool_choice: { type: "tool", name: "weather" } };

for (const [model, served] of FORMS) {
  test(`a message with ${model}`, async () => {
    const { data, response } = await client.messages.create({ model, ...SHORT }).withResponse();
    assert.equal(data.type, "message");
    assert.ok(isServedAs(response.headers.get("x-amalgam-adapter"), served));
    assert.ok(["end_turn", "max_tokens"].includes(data.stop_reason));
    assert.ok(data.usage.output_tokens >= 1);
  });
}

test("the events of a stream come in their order and make the message", async () => {
  const kinds = [];
  const stream = client.messages.stream({ model: "sql", ...SHORT, system: "Be brief." });
  stream.on("streamEvent", (event) => kinds.push(event.type));
  let text = "";
  stream.on("text", (piece) => (text += piece));
  const final = await stream.finalMessage();
  assert.equal(kinds[0], "message_start");
  assert.equal(kinds.at(-1), "message_stop");
  assert.ok(kinds.indexOf("content_block_start") < kinds.indexOf("content_block_delta"));
  assert.ok(kinds.indexOf("content_block_stop") < kinds.indexOf("message_delta"));
  assert.equal(text, final.content.map((block) => block.text ?? "").join(""));
  assert.ok(final.usage.output_tokens >= 1);
});

test("a forced tool is called, and its result taken", async () => {
  const first = await client.messages.create({ model: "sql", ...FORCED });
  const call = first.content.find((block) => block.type === "tool_use");
  assert.equal(call.name, "weather");
  assert.ok(["Oslo", "Rome"].includes(call.input.city));
  const result = { type: "tool_result", tool_use_id: call.id, content: [{ type: "text", text: "Rain." }] };
  const turns = [...HI, { role: "assistant", content: first.content }, { role: "user", content: [result] }];
  const second = await client.messages.create({ model: "sql", messages: turns, max_tokens: 4, tools: [WEATHER] });
  assert.equal(second.type, "message");
});

test("a streamed call of a tool has whole arguments", async () => {
  const final = await client.messages.stream({ model: "sql", ...FORCED }).finalMessage();
  const call = final.content.find((block) => block.type === "tool_use");
  assert.ok(["Oslo", "Rome"].includes(call.input.city));
});

for (const type of ["any", "auto", "none"]) {
  test(`tools with the choice ${type}`, async () => {
    const answer = await client.messages.create({ model: "sql", ...FORCED, tool_choice: { type } });
    if (type === "any") assert.ok(answer.content.some((block) => block.type === "tool_use"));
    assert.equal(answer.type, "message");
  });
}

test("tokens are counted as the answer counts them", async () => {
  const counted = await client.messages.countTokens({ model: "sql", messages: HI });
  const answer = await client.messages.create({ model: "sql", ...SHORT });
  assert.equal(counted.input_tokens, answer.usage.input_tokens);
});

test("refusals are the client's own errors", async () => {
  await assert.rejects(client.messages.create({ model: "sqll", ...SHORT }), Anthropic.NotFoundError);
  await assert.rejects(client.messages.create({ model: "sql", ...SHORT, temperature: 9 }), (error) => {
    assert.ok(error instanceof Anthropic.BadRequestError);
    assert.equal(error.error.error.type, "invalid_request_error");
    assert.match(error.message, /temperature/);
    return true;
  });
  const stranger = new Anthropic({ baseURL: url, apiKey: "wrong", authToken: null, maxRetries: 0 });
  await assert.rejects(stranger.messages.create({ model: "sql", ...SHORT }), Anthropic.AuthenticationError);
});

for (const status of [429, 503]) {
  test(`${status} is repeated after the time that the answer names`, async () => {
    const gate = await gateThatRefusesOnce(status);
    try {
      const patient = new Anthropic({ baseURL: gate.url, apiKey: key, authToken: null, maxRetries: 2 });
      assert.equal((await patient.messages.create({ model: "sql", ...SHORT })).type, "message");
      assert.equal(gate.arrivals.length, 2);
      assert.ok(gate.arrivals[1] - gate.arrivals[0] >= 950);
    } finally {
      gate.close();
    }
  });
}

test("a stream that its client leaves frees the engine", async () => {
  const stream = client.messages.stream({ model: "sql", messages: HI, max_tokens: 1500 });
  for await (const _ of stream) break;
  stream.abort();
  await idle();
});
