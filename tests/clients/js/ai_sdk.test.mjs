// The AI SDK through its provider for servers of this kind.
import assert from "node:assert/strict";
import { test } from "node:test";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embed, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

import { FORMS, gateThatRefusesOnce, idle, isServedAs, key, url } from "./served.mjs";

const options = { name: "amalgam", apiKey: key, includeUsage: true, supportsStructuredOutputs: true };
const amalgam = createOpenAICompatible({ ...options, baseURL: `${url}/v1` });
const SHORT = { prompt: "Say one word.", maxOutputTokens: 4, temperature: 0, maxRetries: 0 };
const City = z.object({ city: z.enum(["Oslo", "Rome"]) });

// A tool that keeps what it was called with.
function weather(calls) {
  const execute = async ({ city }) => {
    calls.push(city);
    return "Rain.";
  };
  return tool({ description: "The weather in a city.", inputSchema: City, strict: true, execute });
}

for (const [model, served] of FORMS) {
  test(`generateText with ${model}`, async () => {
    const answer = await generateText({ model: amalgam(model), ...SHORT });
    assert.ok(isServedAs(answer.response.modelId, served), answer.response.modelId);
    assert.ok(answer.usage.outputTokens >= 1);
  });
}

test("streamText says the same, and its usage", async () => {
  const whole = await generateText({ model: amalgam("sql"), ...SHORT });
  const streamed = streamText({ model: amalgam("sql"), ...SHORT });
  let text = "";
  for await (const piece of streamed.textStream) text += piece;
  assert.equal(text, whole.text);
  assert.equal((await streamed.usage).totalTokens, whole.usage.totalTokens);
});

test("generateText runs a tool and goes on with its result", async () => {
  const calls = [];
  const answer = await generateText({
    model: amalgam("sql"),
    ...SHORT,
    maxOutputTokens: 128,
    tools: { weather: weather(calls) },
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? { type: "tool", toolName: "weather" } : "none" }),
    stopWhen: stepCountIs(2),
  });
  assert.equal(calls.length, 1);
  assert.equal(answer.steps.length, 2);
});

test("streamText runs a tool that must be called", async () => {
  const calls = [];
  const streamed = streamText({
    model: amalgam("sql"),
    ...SHORT,
    maxOutputTokens: 128,
    tools: { weather: weather(calls) },
    toolChoice: { type: "tool", toolName: "weather" },
    stopWhen: stepCountIs(1),
  });
  await streamed.consumeStream();
  assert.equal(calls.length, 1);
});

test("objects by a schema, whole and streamed", async () => {
  const asked = { model: amalgam("sql"), ...SHORT, maxOutputTokens: 32, schema: City };
  assert.ok(City.safeParse((await generateObject(asked)).object).success);
  const streamed = streamObject(asked);
  for await (const _ of streamed.partialObjectStream);
  assert.ok(City.safeParse(await streamed.object).success);
});

test("refusals carry the status and the server's words", async () => {
  const refused = (model) => (error) => {
    assert.ok(APICallError.isInstance(error), String(error));
    assert.equal(error.statusCode, model === "sqll" ? 404 : 400);
    return true;
  };
  await assert.rejects(generateText({ model: amalgam("sqll"), ...SHORT }), refused("sqll"));
  await assert.rejects(generateText({ model: amalgam("sql"), ...SHORT, temperature: 9 }), refused("sql"));
  const stranger = createOpenAICompatible({ ...options, apiKey: "wrong", baseURL: `${url}/v1` });
  await assert.rejects(generateText({ model: stranger("sql"), ...SHORT }), { statusCode: 401 });
  await assert.rejects(embed({ model: amalgam.embeddingModel("sql"), value: "a", maxRetries: 0 }), /embed/i);
});

for (const status of [429, 503]) {
  test(`${status} is repeated after the time that the answer names`, async () => {
    const gate = await gateThatRefusesOnce(status);
    try {
      const patient = createOpenAICompatible({ ...options, baseURL: `${gate.url}/v1` });
      const answer = await generateText({ model: patient("sql"), ...SHORT, maxRetries: 2 });
      assert.ok(isServedAs(answer.response.modelId, "sql@1"));
      assert.equal(gate.arrivals.length, 2);
      assert.ok(gate.arrivals[1] - gate.arrivals[0] >= 950);
    } finally {
      gate.close();
    }
  });
}

test("a stream that its client leaves frees the engine", async () => {
  const leaving = new AbortController();
  const asked = { ...SHORT, maxOutputTokens: 1500, abortSignal: leaving.signal, onError: () => {} };
  const streamed = streamText({ model: amalgam("sql"), ...asked });
  try {
    for await (const _ of streamed.textStream) leaving.abort();
  } catch (error) {
    assert.equal(error.name, "AbortError");
  }
  await idle();
});
