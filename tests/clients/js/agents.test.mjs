// The Agents SDK: a run with a function tool, over chats and over Responses.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";

import { key, url } from "./served.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 120_000 });
const runner = new Runner({ tracingDisabled: true });
const City = z.object({ city: z.enum(["Oslo", "Rome"]) });

for (const Model of [OpenAIChatCompletionsModel, OpenAIResponsesModel]) {
  const model = new Model(client, "sql");
  const modelSettings = { temperature: 0, maxTokens: 48 };

  test(`a plain run over ${Model.name}`, async () => {
    const agent = new Agent({ name: "one", instructions: "Be brief.", model, modelSettings: { ...modelSettings, maxTokens: 4 } });
    const result = await runner.run(agent, "Say one word.");
    assert.equal(typeof result.finalOutput, "string");
  });

  // It has to end by itself: the SDK takes an answer that the limit of tokens has cut for none.
  test(`a streamed run over ${Model.name}`, async () => {
    const agent = new Agent({ name: "one", instructions: "Be brief.", model, modelSettings, outputType: City });
    const result = await runner.run(agent, "Name a city.", { stream: true });
    const kinds = new Set();
    for await (const event of result) kinds.add(event.type);
    await result.completed;
    assert.ok(kinds.has("raw_model_stream_event"));
    assert.ok(City.safeParse(result.finalOutput).success);
  });

  test(`a run with a function tool over ${Model.name}`, async () => {
    const calls = [];
    const weather = tool({
      name: "weather",
      description: "The weather in a city.",
      parameters: City,
      execute: async ({ city }) => {
        calls.push(city);
        return "Rain.";
      },
    });
    const agent = new Agent({
      name: "one",
      instructions: "Use the tool.",
      model,
      tools: [weather],
      modelSettings: { ...modelSettings, toolChoice: "weather" },
      toolUseBehavior: "run_llm_again",
    });
    const result = await runner.run(agent, "What is the weather in Oslo?", { maxTurns: 3 });
    assert.ok(calls.length >= 1);
    assert.equal(typeof result.finalOutput, "string");
  });

  test(`a run with an output by a schema over ${Model.name}`, async () => {
    const agent = new Agent({ name: "one", instructions: "Be brief.", model, modelSettings, outputType: City });
    const result = await runner.run(agent, "Name a city.");
    assert.ok(City.safeParse(result.finalOutput).success);
  });
}
