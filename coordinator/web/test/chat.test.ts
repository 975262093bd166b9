import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import { decodeChunk, decodePool, streamAnswer } from "../src/api";
import * as chat from "../src/chat";
import { pathOf } from "../src/conversation";
import { PoolError, sentenceOf } from "../src/errors";
import { LiveAnswer } from "../src/live";
import { pool, poolError, whyNobodyToAsk } from "../src/pool";
import { change, DEFAULTS } from "../src/settings";
import { MemoryStore } from "../src/store";

const delta = (content: string, extra: object = {}): string =>
  JSON.stringify({ choices: [{ index: 0, delta: { content }, finish_reason: null }], ...extra });
const FINISH = JSON.stringify({ choices: [{ index: 0, delta: {}, finish_reason: "stop" }] });
const USAGE = JSON.stringify({ choices: [], usage: { completion_tokens: 7 } });
const NODES = { decentllm: { nodes: [{ name: "ada", layers: "0-11" }, { name: "bob", layers: "12-23" }] } };

function answerWith(...events: string[]): Response {
  return new Response([": hello\n\n", ...events.map((data) => `data: ${data}\n\n`)].join(""), { status: 200 });
}

const sent = (): { messages: { role: string; content: string }[] } & Record<string, unknown> => {
  const call = vi.mocked(fetch).mock.calls.filter(([path]) => path === "v1/chat/completions").at(-1);
  return JSON.parse(String(call?.[1]?.body));
};

const POOL = { name: "Ours", models: [{ id: "tiny", state: "ready", num_layers: 2 }], nodes: [] };

/** Answers to chat requests, in order; the pool is asked in between. */
function serve(...answers: (Response | Error)[]): void {
  vi.stubGlobal("fetch", vi.fn(async (path: string) => {
    const next = path === "v1/chat/completions" ? answers.shift() : new Response(JSON.stringify(POOL));
    if (next instanceof Error) throw next;
    return next;
  }));
}

const shown = () => pathOf(chat.current.value);
const lastFacts = () => shown().at(-1)?.facts;

beforeEach(async () => {
  change(DEFAULTS);
  poolError.value = null;
  pool.value = decodePool(POOL);
  await chat.useStore(new MemoryStore());
  chat.startNew();
});
afterEach(() => vi.unstubAllGlobals());

describe("asking", () => {
  it("collects text, nodes and figures", async () => {
    serve(answerWith(delta("", NODES), delta("Hello "), delta("you."), FINISH, USAGE, "[DONE]"));
    await chat.ask("Hi");
    expect(shown().map(({ role, text }) => [role, text])).toEqual([["user", "Hi"], ["assistant", "Hello you."]]);
    expect(lastFacts()).toMatchObject({ finish: "stop", numTokens: 7, numReroutes: 0, nodes: NODES.decentllm.nodes });
    expect(chat.summaries.value.map(({ title }) => title)).toEqual(["Hi"]);
  });

  it("counts a chain that changed, and shows the latest", async () => {
    const later = { decentllm: { nodes: [{ name: "cy", layers: "0-23" }] } };
    serve(answerWith(delta("a", NODES), delta("b", NODES), delta("c", later), FINISH, "[DONE]"));
    await chat.ask("Hi");
    expect(lastFacts()).toMatchObject({ numReroutes: 1, nodes: later.decentllm.nodes });
  });

  it("keeps what came before an error in mid-stream", async () => {
    serve(answerWith(delta("Half"), JSON.stringify({ error: { message: "Nobody holds layer 3.", code: "no_route" } })));
    await chat.ask("Hi");
    expect(shown().at(-1)?.text).toBe("Half");
    expect(lastFacts()).toMatchObject({ finish: "error", error: "Nobody holds layer 3." });
  });

  it.each<[string, Response | Error, RegExp]>([
    ["the coordinator's own sentence", new Response('{"error":{"message":"Too long."}}', { status: 400 }), /^Too long\.$/],
    ["a proxy's HTML page", new Response("<h1>Bad gateway</h1>", { status: 502 }), /an error \(502\)/],
    ["no network", new TypeError("Failed to fetch"), /cannot be reached/],
    ["a cut stream", answerWith(delta("x")), /was cut/],
    ["nonsense", answerWith("{"), /does not understand/],
  ])("turns %s into one sentence", async (_name, response, sentence) => {
    serve(response);
    await chat.ask("Hi");
    expect(lastFacts()?.error).toMatch(sentence);
  });

  it("retries as another version of the answer", async () => {
    serve(new TypeError("Failed to fetch"), answerWith(delta("Yes"), FINISH, "[DONE]"));
    await chat.ask("Hi");
    await chat.askAgain(shown().at(-1)?.id ?? "");
    expect(shown().map(({ text }) => text)).toEqual(["Hi", "Yes"]);
    expect(sent().messages).toEqual([{ role: "user", content: "Hi" }]);
  });

  it("sends an edited question in place of the old one", async () => {
    serve(answerWith(delta("1"), FINISH, "[DONE]"), answerWith(delta("2"), FINISH, "[DONE]"));
    await chat.ask("old");
    await chat.editAndAsk(shown()[0]?.id ?? "", "new");
    expect(shown().map(({ text }) => text)).toEqual(["new", "2"]);
    expect(chat.current.value.messages).toHaveLength(4);
  });

  it("sends settings, no thoughts, and no two questions in a row", async () => {
    change({ systemPrompt: "Be brief.", temperature: 0.5, maxTokens: 9 });
    serve(answerWith(delta("<think>hm</think>Yes"), FINISH, "[DONE]"), new TypeError("gone"), answerWith(FINISH, "[DONE]"));
    for (const text of ["one", "two", "three"]) await chat.ask(text);
    expect(sent()).toMatchObject({ temperature: 0.5, max_tokens: 9, stream: true, stream_options: { include_usage: true } });
    expect(sent().messages).toEqual([
      { role: "system", content: "Be brief." },
      { role: "user", content: "one" },
      { role: "assistant", content: "Yes" },
      { role: "user", content: "two\n\nthree" },
    ]);
  });

  it("leaves sampling to the pool when nothing is set", async () => {
    serve(answerWith(FINISH, "[DONE]"));
    await chat.ask("Hi");
    expect(sent()).not.toHaveProperty("temperature");
    expect(sent()).not.toHaveProperty("max_tokens");
  });

  it("stops, keeps the text and calls it stopped", async () => {
    let fail: (reason: unknown) => void = () => {};
    const body = new ReadableStream({
      start(controller) {
        controller.enqueue(new TextEncoder().encode(`data: ${delta("Some")}\n\n`));
        fail = (reason) => controller.error(reason);
      },
    });
    serve(new Response(body));
    const asked = chat.ask("Hi");
    await vi.waitFor(() => expect(chat.currentLive.value?.text.value).toBe("Some"));
    chat.stop();
    fail(new DOMException("aborted", "AbortError"));
    await asked;
    expect(shown().at(-1)?.text).toBe("Some");
    expect(lastFacts()).toMatchObject({ finish: "stopped", error: null });
    expect(chat.currentLive.value).toBeNull();
  });

  it("goes on in its own conversation while another is read", async () => {
    serve(answerWith(delta("Yes"), FINISH, "[DONE]"));
    const asked = chat.ask("Hi");
    const { id } = chat.current.value;
    chat.startNew();
    await asked;
    expect(shown()).toEqual([]);
    await chat.open(id);
    expect(shown().map(({ text }) => text)).toEqual(["Hi", "Yes"]);
  });
});

describe("before the list of models has come", () => {
  it("nothing is sent, and nothing that was typed is lost in a message without an answer", async () => {
    serve(answerWith(delta("Yes"), FINISH, "[DONE]"));
    change({ model: "of another visit" });
    pool.value = null;
    await chat.ask("Hi");
    expect(shown()).toEqual([]);
    expect(fetch).not.toHaveBeenCalled();
    expect(whyNobodyToAsk.value).toMatch(/^Looking for the pool’s models/);
    pool.value = decodePool(POOL);
    expect(whyNobodyToAsk.value).toBeNull();
    await chat.ask("Hi");
    expect(sent()["model"]).toBe("tiny");
  });

  it("an old question is neither edited nor asked again", async () => {
    serve(answerWith(delta("Yes"), FINISH, "[DONE]"));
    await chat.ask("Hi");
    pool.value = null;
    await chat.askAgain(shown()[1]?.id ?? "");
    await chat.editAndAsk(shown()[0]?.id ?? "", "Ho");
    expect(shown().map(({ text }) => text)).toEqual(["Hi", "Yes"]);
    expect(chat.liveAnswers.value.size).toBe(0);
  });

  it("the reason is the pool's own where there is one", () => {
    pool.value = decodePool({ ...POOL, models: [] });
    expect(whyNobodyToAsk.value).toBe("This pool serves no model yet.");
    poolError.value = "The coordinator cannot be reached. Trying again…";
    expect(whyNobodyToAsk.value).toBe("The coordinator cannot be reached. Trying again…");
    pool.value = decodePool(POOL);
    expect(whyNobodyToAsk.value, "who is known can be asked").toBeNull();
  });
});

describe("conversations", () => {
  it("are renamed, deleted and brought back", async () => {
    serve(answerWith(delta("Yes"), FINISH, "[DONE]"));
    await chat.ask("Hi");
    const { id } = chat.current.value;
    await chat.rename(id, "  Greeting ");
    expect(chat.current.value.title).toBe("Greeting");
    await chat.remove(id);
    expect(chat.summaries.value).toEqual([]);
    expect(shown()).toEqual([]);
    await chat.undoRemove();
    expect(chat.current.value.id).toBe(id);
    expect(shown()).toHaveLength(2);
  });
});

describe("what the coordinator sends", () => {
  it.each(["null", "[]", "7", "{}", '{"choices":[]}', '{"choices":[null]}', '{"choices":[{"delta":{"content":5}}]}', '{"decentllm":7}'])(
    "%s is no event",
    (data) => expect(decodeChunk(data)).toEqual([]),
  );

  it("is cut to size where it names things (G15)", () => {
    const pool = decodePool({ name: "x".repeat(999), models: [null, { id: "<script>" }], nodes: "none" });
    expect(pool.name).toHaveLength(120);
    expect(pool.models).toEqual([{ id: "<script>", state: "incomplete", message: "", numLayers: 0, contextLength: null, forecast: null, numLanes: 0 }]);
    expect(() => decodePool(null)).toThrow(PoolError);
  });

  it("may be thoughts in a field of their own", () => {
    const live = new LiveAnswer("c", "m", "model", 0);
    for (const [index, event] of [
      ...decodeChunk('{"choices":[{"delta":{"reasoning_content":"hm"}}]}'),
      ...decodeChunk('{"choices":[{"delta":{"reasoning_content":"m"}}]}'),
      ...decodeChunk(delta("Yes")),
    ].entries()) live.take(event, 100 + index * 50);
    expect(live.text.value).toBe("<think>hmm</think>\n\nYes");
    expect(live.facts("stop", null)).toMatchObject({ timeToFirstTokenMs: 100, reasoningMs: 100, tokensPerSecond: 20 });
  });

  it("never reaches a person as an exception's text", () => {
    expect(sentenceOf(new Error("Cannot read properties of undefined"))).not.toContain("undefined");
  });

  it("ends the request when nothing comes for long", async () => {
    vi.useFakeTimers();
    vi.stubGlobal("fetch", vi.fn((_path: string, options: RequestInit) =>
      new Promise((_resolve, reject) => {
        options.signal?.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
      }),
    ));
    const answer = streamAnswer({ model: "m", messages: [] }, new AbortController().signal).next();
    const outcome = expect(answer).rejects.toThrow(/sent nothing for 120 seconds/);
    await vi.advanceTimersByTimeAsync(121_000);
    await outcome;
    vi.useRealTimers();
  });
});

describe("coming back to an answer", () => {
  const ANSWER = "chatcmpl-0123456789abcdef0123456789abcdef";
  const named = (n: number, data: string): string => `id: ${ANSWER}:${n}\ndata: ${data}\n\n`;
  const END = `data: [DONE]\n\n`;

  /** A response that breaks behind these events, as when the coordinator is killed. */
  function broken(...events: string[]): Response {
    const pieces = events.map((event) => new TextEncoder().encode(event));
    const body = new ReadableStream({
      pull(controller) {
        const piece = pieces.shift();
        if (piece === undefined) controller.error(new TypeError("network error"));
        else controller.enqueue(piece);
      },
    });
    return new Response(body, { status: 200 });
  }

  /** Answers to whatever is asked about answers, in order. */
  function play(...answers: (Response | Error)[]): () => [string, RequestInit][] {
    const calls: [string, RequestInit][] = [];
    vi.stubGlobal("fetch", vi.fn(async (path: string, options: RequestInit) => {
      if (!path.startsWith("v1/chat/completions")) return new Response("{}");
      calls.push([path, options]);
      const next = answers.shift();
      if (next === undefined) throw new TypeError("nothing left to say");
      if (next instanceof Error) throw next;
      return next;
    }));
    return () => calls;
  }

  const idSent = ([, options]: [string, RequestInit]): string | null => new Headers(options.headers).get("Last-Event-ID");

  beforeEach(() => {
    vi.useFakeTimers({ shouldAdvanceTime: true, advanceTimeDelta: 20 });
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  async function asked(): Promise<void> {
    const done = chat.ask("Hi");
    await vi.advanceTimersByTimeAsync(100_000);
    await done;
  }

  it("reads on behind what it has, over refusals and restarts", async () => {
    const calls = play(
      broken(named(1, delta("One ")), named(2, delta("two "))),
      new TypeError("connection refused"),
      new Response("<h1>Bad gateway</h1>", { status: 502 }),
      broken(named(3, delta("three "))),
      new Response(named(4, delta("four")) + named(5, FINISH) + END),
    );
    await asked();
    expect(shown().at(-1)?.text).toBe("One two three four");
    expect(lastFacts()).toMatchObject({ finish: "stop", error: null });
    expect(calls().map(([path]) => path)).toEqual([
      "v1/chat/completions", ...Array<string>(4).fill(`v1/chat/completions/${ANSWER}/events`),
    ]);
    expect(calls().slice(1).map(idSent)).toEqual([2, 2, 2, 3].map((n) => `${ANSWER}:${n}`));
    expect(sent()["stream_options"]).toEqual({ include_usage: true, resumable: true });
  });

  it("says so while it is away, and no longer", async () => {
    play(broken(named(1, delta("One "))), new Response(named(2, delta("two")) + named(3, FINISH) + END));
    const seen: boolean[] = [];
    const done = chat.ask("Hi");
    const live = chat.currentLive.value;
    live?.isReconnecting.subscribe((value) => seen.push(value));
    await vi.advanceTimersByTimeAsync(100_000);
    await done;
    expect(seen).toEqual([false, true, false]);
  });

  it("says that the connection was cut when the pool has no such answer any more", async () => {
    const gone = JSON.stringify({ error: { message: "There is no such answer.", code: "answer_not_found" } });
    play(broken(named(1, delta("One "))), new Response(gone, { status: 404 }));
    await asked();
    expect(shown().at(-1)?.text).toBe("One ");
    expect(lastFacts()?.error).toMatch(/was cut/);
  });

  it("does not try again when the pool says why there is no more", async () => {
    const calls = play(broken(named(1, delta("One ")), `data: ${JSON.stringify({ error: { message: "Unloaded.", code: "x" } })}\n\n`));
    await asked();
    expect(lastFacts()?.error).toBe("Unloaded.");
    expect(calls()).toHaveLength(1);
  });

  it("gives up in the end", async () => {
    const calls = play(broken(named(1, delta("One "))));
    const done = chat.ask("Hi");
    await vi.advanceTimersByTimeAsync(200_000);
    await done;
    expect(lastFacts()?.error).toMatch(/cannot be reached/);
    expect(calls().length).toBeGreaterThan(8);
    expect(calls().length).toBeLessThan(40);
  });

  it("comes back at once when the network does", async () => {
    const calls = play(broken(named(1, delta("One "))), new Response(named(2, FINISH) + END));
    vi.spyOn(Math, "random").mockReturnValue(1);
    const done = chat.ask("Hi");
    await vi.waitFor(() => expect(chat.currentLive.value?.isReconnecting.value).toBe(true));
    expect(calls()).toHaveLength(1);
    dispatchEvent(new Event("online"));
    await done;
    expect(calls()).toHaveLength(2);
    vi.restoreAllMocks();
  });

  it("tells the pool that an answer is wanted no more", async () => {
    const calls = play(broken(named(1, delta("One "))), new Response(null, { status: 204 }));
    const done = chat.ask("Hi");
    await vi.waitFor(() => expect(chat.currentLive.value?.isReconnecting.value).toBe(true));
    chat.stop();
    await done;
    expect(lastFacts()).toMatchObject({ finish: "stopped", error: null });
    expect(calls().at(-1)).toMatchObject([`v1/chat/completions/${ANSWER}`, { method: "DELETE" }]);
  });
});
