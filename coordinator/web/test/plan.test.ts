import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import { PoolError } from "../src/errors";
import { decodePlan, demandOf, newcomerSentence, type Plan, rowsOfPlan } from "../src/operator/plan";
import * as planState from "../src/operator/planState";
import * as state from "../src/operator/state";
import { partMark } from "../src/operator/words";

const FORECAST = { tpot_s: 0.05, ttft_s: 0.5, tokens_per_s: 40, num_sessions: 8 };
const holder = (node: string, layers: string, change: object = {}) => ({
  node_id: node.repeat(8), node, device_id: "cuda:0", device: "GPU", part: "serving", layers, reason: "6 layers of lane 1",
  why: ["A token takes it 2.0 ms a layer.", "Nobody else holds all of them."], num_requests: 1, num_kv_tokens: 5_000, ...change,
});
const NEWCOMER = { like: "ada's GPU", memory_bytes: 16e9, layers: "6-11", reason: "this stage was the narrowest", forecast: { ...FORECAST, tokens_per_s: 60 }, num_needed: 0 };
const MODEL = {
  name: "m", variant: "bfloat16", num_layers: 12, num_replicas: 2, wanted_tokens_per_s: 3, message: "", forecast: FORECAST,
  lanes: [{ stages: [{ layers: "0-5", holders: [holder("ada", "0-5")] }, { layers: "6-11", holders: [holder("bert", "6-11"), holder("carl", "6-11")] }], forecast: FORECAST }],
  others: [holder("dora", "0-3")], newcomer: NEWCOMER,
};
const PLAN = { pool: "Lab", bound_tpot_s: 0.25, bound_ttft_s: 10, num_devices: 5, models: [MODEL], idle: [holder("eve", "", { part: "standby" })] };
const planned = (change: object = {}): Plan["models"][number] => decodePlan({ models: [{ ...MODEL, ...change }] }).models[0]!;

describe("the plan", () => {
  it("is read whole", () => {
    const read = decodePlan(PLAN);
    expect(read).toMatchObject({ boundTpotS: 0.25, boundTtftS: 10 });
    expect(read.models[0]).toMatchObject({ name: "m", numLayers: 12, numReplicas: 2, wantedTokensPerS: 3, forecast: { tokensPerS: 40 } });
    expect(read.models[0]?.lanes[0]?.stages[1]?.holders.map(({ node }) => node)).toEqual(["bert", "carl"]);
    expect(read.idle[0]).toMatchObject({ node: "eve", part: "standby", why: holder("eve", "").why });
  });

  it.each([null, 7, "x", []])("%j is none", (body) => expect(() => decodePlan(body)).toThrow(PoolError));

  it.each([{}, { models: "x", idle: {} }, { models: [null, 7], idle: [[]] }])("%j is an empty one", (body) => {
    expect(decodePlan(body)).toEqual({ boundTpotS: 0, boundTtftS: 0, models: [], idle: [] });
  });

  it("takes no wrong types, and is cut to size", () => {
    const [model] = decodePlan({ models: [{ lanes: [{ stages: [{ holders: [{ why: "because", num_requests: "many", node: "n".repeat(999) }] }] }], newcomer: [], forecast: 7 }] }).models;
    expect(model).toMatchObject({ newcomer: null, forecast: null, wantedTokensPerS: null });
    const [only] = model!.lanes[0]!.stages[0]!.holders;
    expect([only?.why, only?.numRequests, only?.node.length]).toEqual([[], 0, 120]);
    expect(decodePlan({ idle: [{ why: Array.from({ length: 99 }, () => "x") }] }).idle[0]?.why).toHaveLength(12);
  });

  it("has a row for every holder, those of no lane last", () => {
    expect(rowsOfPlan(planned()).map(({ lane, holder: { node } }) => `${lane} ${node}`)).toEqual(["1 ada", "1 bert", "1 carl", "null dora"]);
  });

  it("says what is asked for", () => {
    expect(demandOf(planned())).toBe("At least 2 copies by the operator’s floor; 3.0 tokens/s are wanted.");
    expect(demandOf(planned({ num_replicas: 1, wanted_tokens_per_s: null }))).toBe("At least 1 copy by the operator’s floor; nobody has asked yet.");
  });

  it("says what one more device would add", () => {
    const sentence = (change: object, forecast: object | null = FORECAST): string => newcomerSentence(planned({ forecast, newcomer: { ...NEWCOMER, ...change } }));
    expect(sentence({})).toBe("One more device like ada's GPU (16 GB) would take layers 6–11 (this stage was the narrowest). Together then: 50 ms per token, 500 ms to the first token, 60 tokens/s at most, 8 requests at once.");
    expect(sentence({}, null)).toMatch(/A first lane: 50 ms/);
    expect(sentence({ forecast: null }, null)).toMatch(/no lane yet/);
    expect(sentence({ num_needed: 3 }, null)).toMatch(/is not enough: a first lane needs 3 of them/);
    expect(sentence({ num_needed: null }, null)).toMatch(/would not help/);
    expect(sentence({ layers: "", reason: "it would stand by" })).toMatch(/would stand by/);
    expect(newcomerSentence(planned({ newcomer: null }))).toBe("");
  });

  it.each([["serving", "Serving"], ["standby", "Standing by"], ["failed", "Failed"], ["constructor", "constructor"]])("calls %s %s", (part, word) => {
    expect(partMark(part).word).toBe(word);
  });
});

describe("the plan on the operator page", () => {
  let answers: (() => Response)[] = [];
  let numAsked = 0;
  let stop = (): void => {};
  const ok = (body: object) => () => new Response(JSON.stringify(body));

  beforeEach(() => {
    vi.useFakeTimers();
    numAsked = 0;
    vi.stubGlobal("fetch", vi.fn(async (path: string) => {
      expect(path).toBe("api/operator/plan");
      numAsked += 1;
      const next = answers.length > 1 ? answers.shift() : answers[0];
      return next!();
    }));
  });
  afterEach(() => {
    stop();
    state.phase.value = "asking";
    vi.useRealTimers();
    vi.unstubAllGlobals();
  });

  async function begin(phase: state.Phase, ...given: (() => Response)[]): Promise<void> {
    answers = given;
    state.phase.value = phase;
    stop = planState.startPlanPolling();
    await vi.advanceTimersByTimeAsync(0);
  }

  it("is asked for only by an operator", async () => {
    await begin("signed-out", ok(PLAN));
    await vi.advanceTimersByTimeAsync(60_000);
    expect(numAsked).toBe(0);
  });

  it("is asked for again while it is looked at, and not drawn again when it is the same", async () => {
    await begin("signed-in", ok(PLAN), ok(PLAN), ok({ ...PLAN, models: [] }));
    const first = planState.plan.value;
    expect(first?.models).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(6_000);
    expect(planState.plan.value).toBe(first);
    await vi.advanceTimersByTimeAsync(6_000);
    expect(planState.plan.value?.models).toEqual([]);
    expect(numAsked).toBe(3);
  });

  it("stays in view with a sentence while the coordinator is silent", async () => {
    await begin("signed-in", ok(PLAN), () => { throw new TypeError("gone"); }, ok(PLAN));
    await vi.advanceTimersByTimeAsync(6_000);
    expect(planState.planError.value).not.toBeNull();
    expect(planState.plan.value?.models).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(6_000);
    expect(planState.planError.value).toBeNull();
  });

  it("is gone with the session", async () => {
    await begin("signed-in", ok(PLAN));
    state.phase.value = "signed-out";
    expect(planState.plan.value).toBeNull();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(numAsked).toBe(1);
  });
});
