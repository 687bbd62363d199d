// The openai client: chats, completions and Responses, by protocol and not by what a small model says.
import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { CITY, FORMS, HI, alias, gateThatRefusesOnce, idle, isServedAs, key, url } from "./served.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 120_000 });
const chats = client.chat.completions;
const SHORT = { messages: HI, max_tokens: 4, temperature: 0 };
// Strict, so that the schema binds the arguments; without it they are whatever the model makes of them.
const FUNCTION = { name: "weather", description: "The weather in a city.", parameters: CITY, strict: true };
const WEATHER = { type: "function", function: FUNCTION };

test("models are listed and shown", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  for (const name of ["smollm2", "sql", "json", alias]) assert.ok(names.includes(name), name);
  assert.equal((await client.models.retrieve("sql@1")).root, "sql@1");
});

for (const [model, served] of FORMS) {
  test(`a chat with ${model}`, async () => {
    const { data, response } = await chats.create({ model, ...SHORT }).withResponse();
    assert.ok(isServedAs(data.model, served), data.model);
    assert.equal(response.headers.get("x-amalgam-adapter"), data.model);
    assert.ok(data.usage.completion_tokens >= 1);
  });
}

test("a stream says the same, and its usage at the end", async () => {
  const whole = await chats.create({ model: "sql", ...SHORT });
  const stream = await chats.create({ model: "sql", ...SHORT, stream: true, stream_options: { include_usage: true } });
  let text = "";
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  for (const count of ["prompt_tokens", "completion_tokens", "total_tokens"]) assert.equal(usage[count], whole.usage[count]);
});

test("the client's own runner puts a stream together", async () => {
  const runner = chats.stream({ model: "sql", ...SHORT, stream_options: { include_usage: true } });
  const final = await runner.finalChatCompletion();
  assert.ok(["stop", "length"].includes(final.choices[0].finish_reason));
  assert.ok((await runner.totalUsage()).total_tokens > 0);
});

for (const tool_choice of ["required", { type: "function", function: { name: "weather" } }]) {
  test(`a tool is called by ${JSON.stringify(tool_choice)}, and its result taken`, async () => {
    const asked = { model: "sql", tools: [WEATHER], max_tokens: 128, temperature: 0 };
    const first = await chats.create({ ...asked, messages: HI, tool_choice, parallel_tool_calls: false });
    const [call] = first.choices[0].message.tool_calls;
    assert.equal(call.function.name, "weather");
    assert.ok(["Oslo", "Rome"].includes(JSON.parse(call.function.arguments).city));
    const result = { role: "tool", tool_call_id: call.id, content: "Rain." };
    const second = await chats.create({ ...asked, messages: [...HI, first.choices[0].message, result], max_tokens: 4 });
    assert.equal(second.object, "chat.completion");
  });
}

test("a streamed call of a tool has one id and whole arguments", async () => {
  const asked = { model: "sql", messages: HI, tools: [WEATHER], max_tokens: 128, temperature: 0 };
  const stream = chats.stream({ ...asked, tool_choice: { type: "function", function: { name: "weather" } } });
  const final = await stream.finalChatCompletion();
  const [call] = final.choices[0].message.tool_calls;
  assert.ok(call.id);
  assert.ok(["Oslo", "Rome"].includes(JSON.parse(call.function.arguments).city));
});

test("tools that the model may leave", async () => {
  for (const tool_choice of ["auto", "none", undefined]) {
    const answer = await chats.create({ model: "sql", ...SHORT, tools: [WEATHER], tool_choice });
    assert.equal(answer.choices.length, 1);
  }
});

test("a schema binds the answer, also through the client's parser", async () => {
  const schema = z.object({ city: z.enum(["Oslo", "Rome"]) });
  const asked = { model: "sql", messages: HI, max_tokens: 32, temperature: 0 };
  const parsed = await chats.parse({ ...asked, response_format: zodResponseFormat(schema, "city") });
  assert.ok(["Oslo", "Rome"].includes(parsed.choices[0].message.parsed.city));
});

test("log-probabilities", async () => {
  const chat = await chats.create({ model: "sql", ...SHORT, logprobs: true, top_logprobs: 3 });
  assert.equal(chat.choices[0].logprobs.content[0].top_logprobs.length, 3);
  const text = await client.completions.create({ model: "sql", prompt: "Once", max_tokens: 3, logprobs: 2 });
  assert.ok(text.choices[0].logprobs.token_logprobs.length >= 1);
});

test("Responses: whole, streamed, by a schema, with a tool's turn", async () => {
  const asked = { model: "sql", input: "Say hello.", max_output_tokens: 8, temperature: 0 };
  const whole = await client.responses.create(asked);
  assert.equal(whole.object, "response");
  const kinds = [];
  let text = "";
  for await (const event of await client.responses.create({ ...asked, stream: true })) {
    kinds.push(event.type);
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(kinds[0], "response.created");
  assert.ok(["response.completed", "response.incomplete"].includes(kinds.at(-1)), kinds.at(-1));
  assert.equal(text, whole.output_text);
  const format = { type: "json_schema", name: "city", schema: CITY, strict: true };
  const bound = await client.responses.create({ ...asked, max_output_tokens: 32, text: { format } });
  assert.ok(["Oslo", "Rome"].includes(JSON.parse(bound.output_text).city));
  const call = { type: "function_call", call_id: "c1", name: "weather", arguments: '{"city":"Oslo"}' };
  const output = { type: "function_call_output", call_id: "c1", output: "Rain." };
  const tools = [{ type: "function", name: "weather", parameters: CITY, strict: true }];
  const turn = await client.responses.create({ ...asked, input: [{ role: "user", content: "Hi." }, call, output], tools });
  assert.equal(turn.object, "response");
});

test("embeddings are refused in words, because the model makes none", async () => {
  await assert.rejects(client.embeddings.create({ model: "sql", input: "a" }), (error) => {
    assert.ok(error.status >= 400 && error.status < 500, String(error.status));
    assert.ok(error.code);
    assert.match(error.message, /embed/i);
    return true;
  });
});

test("refusals are the client's own errors, with code and parameter", async () => {
  await assert.rejects(chats.create({ model: "sqll", ...SHORT }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
  await assert.rejects(chats.create({ model: "sql", ...SHORT, temperature: 9 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    return true;
  });
  const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

for (const status of [429, 503]) {
  test(`${status} is repeated after the time that the answer names`, async () => {
    const gate = await gateThatRefusesOnce(status);
    try {
      const patient = new OpenAI({ baseURL: `${gate.url}/v1`, apiKey: key, maxRetries: 2 });
      assert.ok(isServedAs((await patient.chat.completions.create({ model: "sql", ...SHORT })).model, "sql@1"));
      assert.equal(gate.arrivals.length, 2);
      assert.ok(gate.arrivals[1] - gate.arrivals[0] >= 950);
    } finally {
      gate.close();
    }
  });
}

test("a stream that its client leaves frees the engine", async () => {
  const long = { model: "sql", messages: HI, max_tokens: 1500, ignore_eos: true, stream: true };
  const stream = await chats.create(long);
  for await (const _ of stream) break;
  stream.controller.abort();
  await idle();
});
