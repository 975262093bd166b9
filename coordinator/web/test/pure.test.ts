import { describe, expect, it } from "vitest";

import { dayGroup, formatBytes, formatRate, formatSeconds } from "../src/format";
import { decodeForecast, describeForecast } from "../src/forecast";
import { describeHolder, describeLayers, describeModel, holdersOf, parseLayers, rowsOf } from "../src/layers";
import { decodePool } from "../src/api";
import { cutAt, nextLength } from "../src/pacer";
import { splitReasoning, withoutReasoning } from "../src/reasoning";
import { decodeSettings, DEFAULTS } from "../src/settings";

describe("splitReasoning", () => {
  it("parts thoughts from answer", () => {
    expect(splitReasoning("<think>a\nb</think>\n\nc")).toEqual({ thoughts: "a\nb", isThinking: false, answer: "c" });
  });

  it("never lets a half-arrived tag flash up", () => {
    const text = "\n<think>thoughts</think>\n\nanswer";
    for (let end = 0; end <= text.length; end += 1) {
      const { thoughts, answer } = splitReasoning(text.slice(0, end), false);
      expect("thoughts".startsWith(thoughts ?? "")).toBe(true);
      expect("answer".startsWith(answer)).toBe(true);
    }
  });

  it("shows all of a message that ended in the middle of a tag", () => {
    expect(splitReasoning("<")).toEqual({ thoughts: null, isThinking: false, answer: "<" });
    expect(splitReasoning("<think>a <")).toEqual({ thoughts: "a <", isThinking: false, answer: "" });
  });

  it("understands a template that has opened the thoughts itself", () => {
    expect(splitReasoning("a\n</think>\n\nb")).toEqual({ thoughts: "a", isThinking: false, answer: "b" });
  });

  it("takes empty thoughts for none", () => {
    expect(splitReasoning("<think>\n\n</think>\n\nb")).toEqual({ thoughts: null, isThinking: false, answer: "b" });
  });

  it("leaves the tag alone where it is only talked about", () => {
    const text = "Models write `<think>` and `</think>`.";
    expect(splitReasoning(text).answer).toBe(text);
    expect(withoutReasoning("<b>x")).toBe("<b>x");
  });
});

describe("the pacer", () => {
  it("always gets there, and never past the end", () => {
    let shown = 0;
    for (let frame = 0; frame < 100; frame += 1) shown = nextLength(shown, 500);
    expect(shown).toBe(500);
    expect(nextLength(9, 4)).toBe(4);
  });

  it("does not cut through a character", () => {
    expect(cutAt("a👋b", 2)).toBe("a");
    expect(cutAt("a👋b", 3)).toBe("a👋");
  });
});

describe("layers", () => {
  const device = { name: "gpu", state: "ready", model: "m", done_bytes: 1, total_bytes: 2 };
  const pool = decodePool({
    name: "p",
    models: [],
    nodes: [
      { name: "b", state: "serving", devices: [{ ...device, layers: "6-11" }] },
      { name: "a", state: "serving", devices: [{ ...device, layers: "0-5" }, { ...device, layers: "0-11" }, { ...device, model: "other", layers: "0-1" }] },
    ],
  });

  it("are read and named", () => {
    expect(parseLayers("0-11")).toEqual({ first: 0, last: 11 });
    expect(parseLayers("5-3")).toBeNull();
    expect(parseLayers("<b>")).toBeNull();
    expect(describeLayers("0-11")).toBe("layers 0–11");
    expect(describeLayers("7")).toBe("layer 7");
    expect(describeLayers("odd")).toBe("odd");
  });

  it("have holders in order, replicas on a row of their own", () => {
    const rows = rowsOf(holdersOf(pool, "m"));
    expect(rows.map((row) => row.map(({ node, first, last }) => `${node}${first}-${last}`))).toEqual([["a0-5", "b6-11"], ["a0-11"]]);
  });

  it("stand lane by lane, each lane on rows of its own", () => {
    const held = { ...device, layers: "0-5" };
    const lanes = decodePool({
      nodes: [
        { name: "spare", devices: [held] },
        { name: "second", devices: [{ ...held, lane: 2 }] },
        { name: "first", devices: [{ ...held, lane: 1 }, { ...held, lane: 1 }, { ...device, layers: "6-11", lane: 1 }] },
      ],
    });
    const rows = rowsOf(holdersOf(lanes, "m"));
    expect(rows.map((row) => row.map(({ node, lane }) => `${node} ${lane}`))).toEqual([["first 1", "first 1"], ["first 1"], ["second 2"], ["spare null"]]);
  });

  it("say who holds them and why", () => {
    const holder = { first: 0, last: 5, node: "a", device: "gpu", state: "serving", doneBytes: 0, totalBytes: 0, lane: 2, reason: "it was free" };
    expect(describeHolder(holder)).toBe("a: layers 0–5, lane 2. Why: it was free");
    expect(describeHolder({ ...holder, lane: null, reason: "" })).toBe("a: layers 0–5");
  });

  it("come with what is expected of them, if anything is", () => {
    const forecast = { tpot_s: 0.0042, ttft_s: 1.23, tokens_per_s: 96.4, num_sessions: 14 };
    const read = decodeForecast(forecast);
    expect(read).toEqual({ tpotS: 0.0042, ttftS: 1.23, tokensPerS: 96.4, numSessions: 14 });
    expect(describeForecast(read!)).toBe("4.2 ms per token, 1.2 s to the first token, 96 tokens/s at most, 14 requests at once");
    expect(describeForecast({ ...read!, tpotS: 0.25, numSessions: 1 })).toMatch(/^250 ms per token.*1 request at once$/);
    for (const none of [null, undefined, 7, [], {}, { tpot_s: 0 }, { tpot_s: "fast" }, { tpot_s: -1 }]) expect(decodeForecast(none)).toBeNull();
  });

  it("are waited for in a sentence, the coordinator's own if it has one", () => {
    const model = { id: "m", state: "incomplete" as const, message: "", numLayers: 2, contextLength: null, forecast: null, numLanes: 0 };
    expect(describeModel(model)).toMatch(/^Waiting for nodes/);
    expect(describeModel({ ...model, message: "Soon." })).toBe("Soon.");
  });
});

describe("settings", () => {
  it.each([null, "", "{", "[]", "7", '{"temperature":"hot","maxTokens":-1,"systemPrompt":3,"model":{}}', '{"temperature":9}'])(
    "that make no sense (%j) are the defaults",
    (text) => expect(decodeSettings(text)).toEqual(DEFAULTS),
  );

  it("are read back", () => {
    const chosen = { model: "m", systemPrompt: "s", temperature: 0, maxTokens: 12, isSidebarOpen: false };
    expect(decodeSettings(JSON.stringify(chosen))).toEqual(chosen);
  });
});

describe("figures", () => {
  it("read well", () => {
    expect([0, 431, 980, 1234, 12_345, 125_000].map(formatSeconds)).toEqual(["10 ms", "430 ms", "1.0 s", "1.2 s", "12 s", "2 min 5 s"]);
    expect([1.234, 36.7].map(formatRate)).toEqual(["1.2 tokens/s", "37 tokens/s"]);
    expect([512, 1_500, 310_000_000].map(formatBytes)).toEqual(["512 B", "1.5 kB", "310 MB"]);
  });

  it("group days by the reader's calendar", () => {
    const noon = new Date(2026, 10, 22, 12).getTime();
    const hours = (count: number): number => noon - count * 3_600_000;
    expect([1, 13, 60, 24 * 20, 24 * 90].map((count) => dayGroup(hours(count), noon))).toEqual([
      "Today", "Yesterday", "Previous 7 days", "Previous 30 days", "Older",
    ]);
  });
});
