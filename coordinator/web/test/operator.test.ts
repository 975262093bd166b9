import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import { textOf, timeOf } from "../src/decode";
import { PoolError } from "../src/errors";
import * as actions from "../src/operator/actions";
import { checkInvitation, checkKey, checkModel, type InvitationForm, type SourceKind } from "../src/operator/forms";
import { decodeMadeInvitation, decodeMadeKey, decodeOverview, type Node } from "../src/operator/overview";
import * as state from "../src/operator/state";
import {
  agoOf, allowsOf, groupedPin, invitationMark, keyMark, lateSentence, modelMark, nodeMark, nodeTitle, removalConsequence, troublesOf, untilOf, usesOf,
} from "../src/operator/words";

const NODE = {
  node_id: "a".repeat(64), name: "ada", state: "serving", first_seen_s: 100, last_seen_s: 200, is_connected: true, is_draining: false,
  is_blocked: false, num_tokens: 5, num_sessions: 2, tokens_per_s: 31.5,
  devices: [{ name: "GPU", state: "serving", model: "m", layers: "0-11", reason: "", done_bytes: 1, total_bytes: 2 }],
};
const INVITATION = {
  invitation_id: "i1", label: "Friends", allows_chat: true, allows_nodes: false, max_uses: 3, num_uses: 1, created_s: 1, expires_s: 1000, is_revoked: false,
};
const KEY = { key_id: "k1", label: "Script", created_s: 1, last_used_s: null, expires_s: null, is_revoked: false };
const OVERVIEW = {
  pool: { name: "Lab", num_waiting: 2 }, join_link: "decentllm://p/join", browser_link: "https://p/", pin: "ab".repeat(32), nodes: [NODE],
  models: [{ id: "m", state: "ready", is_loaded: true, message: "", num_layers: 24, size_bytes: 10 }],
  jobs: [{ job_id: "j", spec: "o/n", step: "downloading", done_bytes: 1, total_bytes: 4, state: "running", message: "" }],
  invitations: [INVITATION], keys: [KEY], audit: [{ entry_id: 1, at_s: 5, who: "operator", what: "made a link" }],
};
const QUIET = { wait: 0, hangs: 0, silent: 0, cut: 0, unknown: 0, slow: 0 };
const node = (change: object = {}): Node => decodeOverview({ nodes: [{ ...NODE, ...change }] }).nodes[0]!;
const invitation = (change: object = {}) => decodeOverview({ invitations: [{ ...INVITATION, ...change }] }).invitations[0]!;
const key = (change: object = {}) => decodeOverview({ keys: [{ ...KEY, ...change }] }).keys[0]!;

describe("the overview", () => {
  it("is read whole", () => {
    const read = decodeOverview(OVERVIEW);
    expect(read).toMatchObject({ poolName: "Lab", numWaiting: 2, joinLink: "decentllm://p/join", browserLink: "https://p/", pin: "ab".repeat(32) });
    expect(read.nodes[0]).toMatchObject({ id: NODE.node_id, isConnected: true, numSessions: 2, tokensPerSecond: 31.5, lastSeenS: 200 });
    expect(read.nodes[0]?.devices).toEqual([{ name: "GPU", state: "serving", model: "m", layers: "0-11", lane: null, reason: "", doneBytes: 1, totalBytes: 2 }]);
    expect(read.models).toEqual([{ id: "m", state: "ready", message: "", numLayers: 24, sizeBytes: 10 }]);
    expect(read.jobs).toEqual([{ id: "j", spec: "o/n", step: "downloading", doneBytes: 1, totalBytes: 4, state: "running", message: "" }]);
    expect(read.invitations[0]).toMatchObject({ id: "i1", allowsChat: true, allowsNodes: false, maxUses: 3, numUses: 1, expiresS: 1000 });
    expect(read.keys[0]).toMatchObject({ id: "k1", lastUsedS: null, expiresS: null, isRevoked: false });
    expect(read.audit).toEqual([{ atS: 5, who: "operator", what: "made a link" }]);
  });

  it.each([null, undefined, 7, "x", [], [OVERVIEW]])("%j is none", (body) => expect(() => decodeOverview(body)).toThrow(PoolError));

  it.each([
    {}, { pool: null, nodes: null, models: {}, jobs: "x", invitations: 7, keys: [null, 1], audit: [[]] },
    { pool: [], nodes: [{}], models: [{}], invitations: [{}], keys: [{ key_id: "" }], pin: "AB".repeat(32) },
  ])("%j is one of an empty pool", (body) => {
    expect(decodeOverview(body)).toEqual({
      poolName: "", numWaiting: 0, joinLink: "", browserLink: "", pin: "", nodes: [], late: QUIET, models: [], jobs: [], invitations: [], keys: [], audit: [],
    });
  });

  it("takes no wrong type for a right, a number or a moment", () => {
    const read = decodeOverview({
      nodes: [{ node_id: "n", is_connected: 1, is_blocked: "yes", num_tokens: -1, tokens_per_s: Number.NaN, last_seen_s: 1e300, devices: [7, { layers: 4 }] }],
      models: [{ id: "m", state: "on fire", num_layers: "24", size_bytes: -1 }],
      jobs: [{ state: "exploded", done_bytes: "x" }],
      invitations: [{ invitation_id: "i", allows_chat: "true", is_revoked: "false", expires_s: -1 }],
      audit: [{ at_s: "now", who: 7, what: null }],
    });
    expect(read.nodes[0]).toMatchObject({ isConnected: false, isBlocked: false, numTokens: 0, tokensPerSecond: null, lastSeenS: null });
    expect(read.nodes[0]?.devices).toEqual([{ name: "", state: "", model: null, layers: null, lane: null, reason: "", doneBytes: 0, totalBytes: 0 }]);
    expect(read.models[0]).toEqual({ id: "m", state: "incomplete", message: "", numLayers: 0, sizeBytes: null });
    expect(read.jobs[0]).toMatchObject({ state: "running", doneBytes: 0 });
    expect(read.invitations[0]).toMatchObject({ allowsChat: false, isRevoked: false, expiresS: null, maxUses: null });
    expect(read.audit[0]).toEqual({ atS: null, who: "", what: "" });
  });

  it("is cut to size (G15)", () => {
    const long = "x".repeat(10_000);
    const read = decodeOverview({ pool: { name: long }, join_link: long, nodes: [{ node_id: "n", name: long }], audit: [{ what: long }], jobs: [{ spec: long, message: long }] });
    expect([read.poolName.length, read.joinLink.length, read.nodes[0]?.name.length, read.audit[0]?.what.length]).toEqual([120, 600, 120, 400]);
    expect([read.jobs[0]?.spec.length, read.jobs[0]?.message.length]).toEqual([1_000, 400]);
    expect(decodeOverview({ audit: Array.from({ length: 9_000 }, () => ({})) }).audit).toHaveLength(5_000);
  });

  it("shows hostile names as they are, half characters as none", () => {
    expect(node({ name: "<img src=x onerror=alert(1)>" }).name).toBe("<img src=x onerror=alert(1)>");
    expect(textOf("a\udc00", 9)).toBe("a\ufffd");
    expect(textOf("ab👋", 3)).toBe("ab\ufffd");
  });

  it.each([0, -1, Number.POSITIVE_INFINITY, 8.64e12 + 1, "5", null])("%j is no moment that a calendar has", (value) => expect(timeOf(value)).toBeNull());

  it("calls a model that is not loaded so, whatever else is said of it", () => {
    expect(decodeOverview({ models: [{ id: "m", state: "ready", is_loaded: false }] }).models[0]?.state).toBe("unloaded");
  });
});

describe("what is shown only once", () => {
  it("is read", () => {
    const made = decodeMadeInvitation({ invitation: INVITATION, join_link: "decentllm://p/join?invite=x", browser_link: "https://p/#invite=x" });
    expect(made).toMatchObject({ joinLink: "decentllm://p/join?invite=x", browserLink: "https://p/#invite=x", invitation: { label: "Friends" } });
    expect(decodeMadeKey({ key: KEY, secret: "sk-1" })).toMatchObject({ secret: "sk-1", key: { id: "k1" } });
  });

  it.each([null, {}, { invitation: null }, { invitation: [] }])("%j is no invitation", (body) => expect(() => decodeMadeInvitation(body)).toThrow(PoolError));
  it.each([null, {}, { key: KEY }, { key: KEY, secret: 7 }, { key: KEY, secret: "" }, { secret: "sk-1" }])("%j is no key", (body) => {
    expect(() => decodeMadeKey(body)).toThrow(PoolError);
  });
});

describe("the invitation form", () => {
  const form: InvitationForm = { label: " Friends ", allowsChat: true, allowsNodes: false, uses: "10", days: "7" };
  const problemsOf = (change: Partial<InvitationForm>) => {
    const outcome = checkInvitation({ ...form, ...change });
    return "problems" in outcome ? Object.keys(outcome.problems) : [];
  };

  it("gives what the coordinator takes", () => {
    expect(checkInvitation(form)).toEqual({ value: { label: "Friends", allows_chat: true, allows_nodes: false, max_uses: 10, expires_in_s: 604_800 } });
    expect(checkInvitation({ ...form, uses: "", days: " " })).toMatchObject({ value: { max_uses: null, expires_in_s: null } });
  });

  it.each<[Partial<InvitationForm>, string[]]>([
    [{ label: "" }, ["label"]],
    [{ label: " \t " }, ["label"]],
    [{ label: "x".repeat(65) }, ["label"]],
    [{ label: "👋".repeat(64) }, []],
    [{ label: "a\u202eb" }, ["label"]],
    [{ label: "a\nb" }, ["label"]],
    [{ label: "a\u00a0b" }, ["label"]],
    [{ label: "a b" }, []],
    [{ label: "a\u0000b" }, ["label"]],
    [{ allowsChat: false }, ["allows"]],
    [{ uses: "0" }, ["uses"]],
    [{ uses: "-1" }, ["uses"]],
    [{ uses: "1.5" }, ["uses"]],
    [{ uses: "1e3" }, ["uses"]],
    [{ uses: "1000000" }, []],
    [{ uses: "1000001" }, ["uses"]],
    [{ uses: "ten" }, ["uses"]],
    [{ days: "0" }, ["days"]],
    [{ days: "3660" }, []],
    [{ days: "3661" }, ["days"]],
    [{ days: "Infinity" }, ["days"]],
    [{ label: "", allowsChat: false, uses: "x", days: "x" }, ["label", "allows", "uses", "days"]],
  ])("%j has problems in %j", (change, fields) => expect(problemsOf(change)).toEqual(fields));
});

describe("the key form", () => {
  it("gives what the coordinator takes, or says what is wrong", () => {
    expect(checkKey({ label: "Script", days: "" })).toEqual({ value: { label: "Script", expires_in_s: null } });
    expect(checkKey({ label: "Script", days: "1" })).toEqual({ value: { label: "Script", expires_in_s: 86_400 } });
    expect(checkKey({ label: "", days: "soon" })).toEqual({
      problems: { label: "Give it a name, so that you know it again.", days: "Give a whole number of days from 1 to 3,660, or leave it empty." },
    });
  });
});

describe("the model form", () => {
  const isGood = (kind: SourceKind, spec: string, name = ""): boolean => "value" in checkModel({ kind, spec, packing: "", name });

  it.each<[SourceKind, string]>([
    ["hub", "Qwen/Qwen2.5-0.5B-Instruct"], ["hub", " owner/name@refs/pr/1 "], ["folder", "/srv/models/qwen"], ["folder", "~/models/q"],
    ["folder", "C:\\models\\q"], ["gguf", "/srv/m.gguf"], ["gguf", "D:/m.GGUF"],
  ])("takes the %s %j", (kind, spec) => expect(isGood(kind, spec)).toBe(true));

  it.each<[SourceKind, string]>([
    ["hub", ""], ["hub", "name"], ["hub", "/owner/name"], ["hub", "a/b/c"], ["hub", "owner/na me"], ["hub", "https://hub.example/o/n"], ["hub", "../../etc"],
    ["folder", ""], ["folder", "models/q"], ["folder", "/srv/m.gguf"], ["folder", "/srv/\u0000"], ["folder", `/${"x".repeat(1_000)}`],
    ["gguf", "/srv/m.safetensors"], ["gguf", "m.gguf"],
  ])("refuses the %s %j", (kind, spec) => expect(isGood(kind, spec)).toBe(false));

  it("takes a name or none", () => {
    expect(checkModel({ kind: "hub", spec: "o/n", packing: "", name: " qwen " })).toEqual({ value: { spec: "o/n", name: "qwen" } });
    expect(isGood("hub", "o/n", "x".repeat(97))).toBe(false);
    expect(isGood("hub", "o/n", "a\u200bb")).toBe(false);
  });

  it("asks for packed weights as the coordinator's own command does", () => {
    expect(checkModel({ kind: "gguf", spec: " /srv/m.gguf ", packing: "int4", name: "" })).toEqual({ value: { spec: "/srv/m.gguf:int4", name: "" } });
    expect(checkModel({ kind: "gguf", spec: "/srv/m", packing: "int8", name: "" })).toHaveProperty("problems.spec");
  });
});

describe("late answers", () => {
  it("say what they turned out to be, and nothing while there were none", () => {
    expect(lateSentence(decodeOverview(OVERVIEW).late)).toBe("");
    const { late } = decodeOverview({ ...OVERVIEW, late: { wait: 3, hangs: 1, silent: "7", cut: -1, unknown: 0, slow: 1, other: 9 } });
    expect(late).toEqual({ ...QUIET, wait: 3, hangs: 1, slow: 1 });
    expect(lateSentence(late)).toBe("Since the start, late answers were looked into 4 times: 3 under way all the time, 1 held up by a"
      + " worker that hung. 1 answer moved because a chain had become slow.");
  });

  it("are told of the node where they were late", () => {
    expect(troublesOf(node().troubles)).toBe("");
    expect(troublesOf(node({ troubles: { hangs: 2, cut: 1 } }).troubles)).toBe("its worker hung 2 times, a link of it lost rows 1 time");
    expect(troublesOf(node({ troubles: { silent: 1 } }).troubles)).toBe("it did not answer 1 time");
  });
});

describe("states in words", () => {
  it.each<[object, string]>([
    [{}, "Serving"], [{ is_draining: true }, "Draining"], [{ is_connected: false, is_draining: true }, "Offline"], [{ is_blocked: true }, "Removed"],
    [{ state: "downloading" }, "Downloading"], [{ state: "failed" }, "Failed"], [{ state: "" }, "Idle"], [{ state: "odd" }, "odd"], [{ state: "toString" }, "toString"],
  ])("a node with %j is %s", (change, word) => expect(nodeMark(node(change)).word).toBe(word));

  it("have another shape each, so that colour is not needed", () => {
    const words = ["serving", "idle", "loading", "failed"].map((name) => nodeMark(node({ state: name })).shape);
    const others = [{ is_draining: true }, { is_connected: false }, { is_blocked: true }].map((change) => nodeMark(node(change)).shape);
    expect(new Set([...words, ...others]).size).toBe(7);
  });

  it.each<[object, string]>([
    [{}, "Active"], [{ is_revoked: true, expires_s: 1 }, "Revoked"], [{ expires_s: 500 }, "Expired"], [{ num_uses: 3 }, "Used up"],
    [{ num_uses: 99, max_uses: null, expires_s: null }, "Active"],
  ])("an invitation with %j is %s", (change, word) => expect(invitationMark(invitation(change), 500).word).toBe(word));

  it("say what invitations and keys are good for", () => {
    expect([allowsOf(invitation()), allowsOf(invitation({ allows_nodes: true })), allowsOf(invitation({ allows_chat: false }))]).toEqual(["Chat", "Chat and nodes", "Nothing"]);
    expect([usesOf(invitation()), usesOf(invitation({ max_uses: null }))]).toEqual(["1 of 3", "1, no limit"]);
    expect([keyMark(key(), 9).word, keyMark(key({ expires_s: 8 }), 9).word, keyMark(key({ is_revoked: true }), 9).word]).toEqual(["Active", "Expired", "Revoked"]);
    expect(modelMark(decodeOverview(OVERVIEW).models[0]!).word).toBe("Ready");
  });

  it("name a node that has no name", () => expect(nodeTitle(node({ name: "" }))).toBe("Node aaaaaaaa"));

  it("name what removing a node does", () => {
    expect(removalConsequence(node())).toMatch(/cannot come back until you unblock it.*2 answers.*layers are given to other nodes/);
    expect(removalConsequence(node({ num_sessions: 0, devices: [] }))).toBe("It is disconnected at once and cannot come back until you unblock it.");
  });

  it("say when", () => {
    const ago = [null, 1005, 1000, 985, 900, 1000 - 7200, 1000 - 86_400 * 3].map((time) => agoOf(time, 1000));
    expect(ago).toEqual(["never", "now", "now", "15 s ago", "1 min ago", "2 h ago", "3 days ago"]);
    const until = [null, 999, 1060, 1000 + 7200, 1000 + 86_400 * 5].map((time) => untilOf(time, 1000));
    expect(until).toEqual(["never", "expired", "in 1 min", "in 2 h", "in 5 days"]);
  });

  it("group a fingerprint for the eye", () => {
    expect(groupedPin("abcd1234ef")).toBe("abcd 1234 ef");
    expect(groupedPin("")).toBe("");
  });
});

describe("an address", () => {
  it("holds any name as one part", () => {
    expect(actions.segment("meta/Llama ü?#%")).toBe("meta%2FLlama%20%C3%BC%3F%23%25");
    expect(actions.segment("../../session")).toBe("..%2F..%2Fsession");
  });
  it.each([".", ".."])("has no place for %j", (name) => expect(() => actions.segment(name)).toThrow(PoolError));
});

describe("the operator page", () => {
  const SIGNED_OUT = { pool_name: "Lab", is_open: false, role: null, label: "", can_chat: false };
  const OPERATOR = { ...SIGNED_OUT, role: "operator", can_chat: true };
  const TOKEN = "abcdefgh12345678";
  let asked: string[] = [];

  function serve(answers: Record<string, (() => Response)[]>): void {
    asked = [];
    vi.stubGlobal("fetch", vi.fn(async (path: string, options: RequestInit = {}) => {
      const name = `${options.method ?? "GET"} ${path}`;
      asked.push(name);
      const rows = answers[name] ?? [];
      const next = rows.length > 1 ? rows.shift() : rows[0];
      if (next === undefined) throw new TypeError("Failed to fetch");
      return next();
    }));
  }
  const ok = (body: object) => () => new Response(JSON.stringify(body));
  const refusal = (status: number, code: string, message: string) => () => new Response(JSON.stringify({ error: { code, message } }), { status });

  beforeEach(() => vi.useFakeTimers());
  afterEach(async () => {
    serve({ "DELETE api/session": [ok({})], "GET api/session": [ok(SIGNED_OUT)] });
    await state.leave();
    vi.useRealTimers();
    vi.unstubAllGlobals();
  });

  it("says how to get a link to whoever has none", async () => {
    serve({ "GET api/session": [ok(SIGNED_OUT)] });
    await state.enter(null);
    expect(state.phase.value).toBe("signed-out");
    expect(asked, "the overview is not even asked for").toEqual(["GET api/session"]);
  });

  it("does not take a chat user for an operator", async () => {
    serve({ "GET api/session": [ok({ ...SIGNED_OUT, role: "chat", can_chat: true })] });
    await state.enter(null);
    expect(state.phase.value).toBe("signed-out");
  });

  it("exchanges a link and asks again every two seconds while it is looked at", async () => {
    serve({ "POST api/session": [ok(OPERATOR)], "GET api/operator/overview": [ok(OVERVIEW), ok({ ...OVERVIEW, nodes: [] })] });
    await state.enter(TOKEN);
    expect(state.overview.value?.nodes).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(2_000);
    expect(state.overview.value?.nodes, "a dead node is gone with the next answer").toEqual([]);
    expect(asked).toEqual(["POST api/session", "GET api/operator/overview", "GET api/operator/overview"]);
  });

  it("rests while nobody looks", async () => {
    serve({ "GET api/session": [ok(OPERATOR)], "GET api/operator/overview": [ok(OVERVIEW)] });
    await state.enter(null);
    vi.spyOn(document, "visibilityState", "get").mockReturnValue("hidden");
    await vi.advanceTimersByTimeAsync(20_000);
    expect(asked).toHaveLength(2);
    vi.restoreAllMocks();
  });

  it("keeps who is signed in when another link fails", async () => {
    serve({ "POST api/session": [refusal(403, "link_unknown", "This link is unknown.")], "GET api/session": [ok(OPERATOR)], "GET api/operator/overview": [ok(OVERVIEW)] });
    await state.enter(TOKEN);
    expect(state.phase.value).toBe("signed-in");
    expect(state.signInError.value).toBe("This link is unknown.");
  });

  it("shows old figures as old, and fresh ones again", async () => {
    serve({ "GET api/session": [ok(OPERATOR)], "GET api/operator/overview": [ok(OVERVIEW), () => { throw new TypeError("gone"); }, ok(OVERVIEW)] });
    await state.enter(null);
    await vi.advanceTimersByTimeAsync(2_000);
    expect(state.staleReason.value).toMatch(/cannot be reached/);
    expect(state.overview.value?.nodes).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(2_000);
    expect(state.staleReason.value).toBeNull();
  });

  it.each<[number, string]>([[403, "operators_only"], [401, "sign_in_needed"]])("goes back to the sign-in on %d %s", async (status, code) => {
    serve({ "GET api/session": [ok(OPERATOR)], "GET api/operator/overview": [ok(OVERVIEW), refusal(status, code, "No.")] });
    await state.enter(null);
    await vi.advanceTimersByTimeAsync(2_000);
    expect(state.phase.value).toBe("signed-out");
    expect(state.overview.value, "nothing of the pool stays on the screen").toBeNull();
    const before = asked.length;
    await vi.advanceTimersByTimeAsync(20_000);
    expect(asked).toHaveLength(before);
  });

  it("shows nothing that the coordinator has not said", async () => {
    serve({
      "GET api/session": [ok(OPERATOR)],
      "GET api/operator/overview": [ok(OVERVIEW), ok({ ...OVERVIEW, nodes: [{ ...NODE, is_draining: true }] })],
      "POST api/operator/nodes/n/drain": [ok({})],
    });
    await state.enter(null);
    const work = state.perform("drain n", () => actions.drainNode("n", true), "Done.");
    expect(state.overview.value?.nodes[0]?.isDraining).toBe(false);
    expect(state.underway.value.has("drain n")).toBe(true);
    expect(await state.perform("drain n", () => actions.drainNode("n", true), "Twice."), "a second press does nothing").toBeNull();
    await work;
    expect(state.overview.value?.nodes[0]?.isDraining).toBe(true);
    expect(state.underway.value.size).toBe(0);
    expect(state.outcome.value).toEqual({ text: "Done.", isBad: false });
  });

  it("says why something was refused, and can be asked again", async () => {
    serve({
      "GET api/session": [ok(OPERATOR)], "GET api/operator/overview": [ok(OVERVIEW)],
      "POST api/operator/models/m/load": [refusal(409, "busy", "Another model is being added.")],
    });
    await state.enter(null);
    state.press("load m", () => actions.loadModel("m"), "Loaded.");
    await vi.waitFor(() => expect(state.outcome.value).toEqual({ text: "Another model is being added.", isBad: true }));
    expect(state.underway.value.size).toBe(0);
  });

  it("sends what the forms gave, as JSON and nothing else", async () => {
    serve({ "POST api/operator/models": [ok({})], "DELETE api/operator/models/o%2Fn": [ok({})] });
    await actions.addModel({ spec: "o/n", name: "" });
    await actions.removeModel("o/n");
    const calls = vi.mocked(fetch).mock.calls.map(([path, options]) => [path, options?.body, new Headers(options?.headers).get("content-type")]);
    expect(calls).toEqual([
      ["api/operator/models", '{"spec":"o/n"}', "application/json"],
      ["api/operator/models/o%2Fn", "{}", "application/json"],
    ]);
  });
});
