import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import * as account from "../src/account";
import { decodePool } from "../src/api";
import * as chat from "../src/chat";
import { isSignInNeeded, PoolError } from "../src/errors";
import { checkedJoinLink, nodeCommand, readPasted } from "../src/joinLink";
import { leave } from "../src/leave";
import { pool, poolError, refreshPool } from "../src/pool";
import { decodeSession, signIn, takeToken, welcomeSentence } from "../src/session";
import { MemoryStore } from "../src/store";

const CLOSED = { pool_name: "Lab", is_open: false, role: null, label: "", can_chat: false };
const INVITED = { ...CLOSED, role: "chat", label: "Friends", can_chat: true };
const OPEN = { ...CLOSED, is_open: true, can_chat: true };
const POOL = decodePool({ models: [{ id: "tiny", state: "ready", num_layers: 2 }] });
const TOKEN = "abcdefgh12345678";

class Refusal {
  constructor(readonly status: number, readonly body: object) {}
}

type Answer = object | Error | Refusal;

const asked: { path: string; method: string; body: unknown }[] = [];

/** The coordinator, as a table from "METHOD path" to answers in order; the last one is given again. */
function serve(answers: Record<string, Answer[]>): void {
  vi.stubGlobal("fetch", vi.fn(async (path: string, options: RequestInit = {}) => {
    const method = options.method ?? "GET";
    asked.push({ path, method, body: typeof options.body === "string" ? JSON.parse(options.body) : null });
    const rows = answers[`${method} ${path}`] ?? [];
    const next = rows.length > 1 ? rows.shift() : rows[0];
    if (next === undefined || next instanceof Error) throw next ?? new TypeError(`nobody answers ${method} ${path}`);
    if (next instanceof Refusal) return new Response(JSON.stringify(next.body), { status: next.status });
    return new Response(JSON.stringify(next));
  }));
}

const refused = (code: string, message: string, status = 403) => new Refusal(status, { error: { code, message } });

beforeEach(async () => {
  account.session.value = null;
  account.signInError.value = null;
  account.greeting.value = null;
  account.hasEnded.value = false;
  pool.value = null;
  poolError.value = null;
  asked.length = 0;
  await chat.useStore(new MemoryStore());
  chat.startNew();
});
afterEach(() => {
  vi.unstubAllGlobals();
  vi.clearAllTimers();
  history.replaceState(null, "", "/");
});

describe("what the coordinator says about the session", () => {
  it("is read field by field", () => {
    expect(decodeSession(INVITED)).toEqual({ poolName: "Lab", isOpen: false, role: "chat", label: "Friends", canChat: true });
  });

  it.each([null, 7, "operator", [], [CLOSED]])("%j is no session", (body) => {
    expect(() => decodeSession(body)).toThrow(PoolError);
  });

  it("never lets anybody in by a value of the wrong type", () => {
    const hostile = { pool_name: {}, is_open: "true", role: "root", label: ["x"], can_chat: 1 };
    expect(decodeSession(hostile)).toEqual({ poolName: "", isOpen: false, role: null, label: "", canChat: false });
    expect(decodeSession({}).canChat).toBe(false);
  });

  it("is cut to size, and half of a character is none (G15)", () => {
    expect(decodeSession({ pool_name: "x".repeat(9999) }).poolName).toHaveLength(120);
    expect(decodeSession({ label: "\ud800" }).label).toBe("\ufffd");
  });
});

describe("a link in the address bar", () => {
  it("gives its token and leaves the bar at once", () => {
    history.replaceState(null, "", `/?x=1#invite=${TOKEN}`);
    const before = history.length;
    expect(takeToken("invite")).toBe(TOKEN);
    expect(location.href.endsWith("/?x=1")).toBe(true);
    expect(history.length).toBe(before);
    expect(takeToken("invite")).toBeNull();
  });

  it("of the other kind, or of a conversation, stays", () => {
    history.replaceState(null, "", `/#token=${TOKEN}`);
    expect(takeToken("invite")).toBeNull();
    expect(location.hash).toBe(`#token=${TOKEN}`);
  });

  it.each(["", "short", "has%20blank", "x".repeat(129), "<script>alert(1)</script>"])("with the damaged token %j asks nobody", async (token) => {
    serve({});
    await expect(signIn(token)).rejects.toThrow(/damaged/);
    expect(asked).toEqual([]);
  });
});

describe("a pasted invitation", () => {
  it.each([
    TOKEN, `  ${TOKEN}\n`, `https://pool.example:8443/#invite=${TOKEN}`, `HTTPS://Pool.Example:8443/#invite=${TOKEN}`,
    `decentllm://pool.example:8443/join?pin=${"a".repeat(64)}&invite=${TOKEN}`, `pool.example:8443/#invite=${TOKEN}`,
    `https://pool.example:8443/operator#token=${TOKEN}`,
  ])("%j is understood", (text) => expect(readPasted(text, "pool.example:8443")).toEqual({ token: TOKEN }));

  it.each<[string, RegExp]>([
    ["", /Paste the invitation/],
    ["  \n", /Paste the invitation/],
    ["hello", /no invitation in this/],
    ["https://pool.example:8443/", /no invitation in this/],
    ["https://pool.example:8443/#invite=", /damaged/],
    ["https://pool.example:8443/#invite=a b c d e f g h", /damaged/],
    ["x".repeat(700), /too long/],
    [`https://other.example/#invite=${TOKEN}`, /for the pool at other\.example/],
    [`https://pool.example:8443@other.example/#invite=${TOKEN}`, /for the pool at/],
  ])("%j gets one sentence", (text, sentence) => {
    const read = readPasted(text, "pool.example:8443");
    expect("problem" in read && read.problem).toMatch(sentence);
  });
});

describe("a join link", () => {
  it.each([
    "decentllm://127.0.0.1:8000/join", "decentllm://[::1]:8000/join?tls=1", "decentllm://bücher.example/join?invite=a_b-c",
    `decentllm://pool.example:8443/join?pin=${"0a".repeat(32)}&invite=${TOKEN}`,
  ])("%s may be opened and copied", (link) => {
    expect(checkedJoinLink(link)).toBe(link);
    expect(nodeCommand(link)).toBe(`decentllm node run --join '${link}'`);
  });

  it.each([
    null, 7, {}, "", "javascript:alert(1)", "https://pool.example/join", "decentllm://pool.example/join'; rm -rf ~; '",
    "decentllm://pool.example/join?invite=$(id)", "decentllm://pool.example/join?a=`id`", "decentllm://pool.example/join\nx",
    " decentllm://pool.example/join", "decentllm://pool.example/other", "decentllm:///join", `decentllm://p/join?pin=${"a".repeat(600)}`,
  ])("%j is none", (value) => expect(checkedJoinLink(value)).toBeNull());
});

describe("entering", () => {
  it("an open pool needs no sign-in", async () => {
    serve({ "GET api/session": [OPEN] });
    await account.refreshSession();
    expect(account.needsSignIn.value).toBe(false);
  });

  it("a closed pool asks for an invitation, and nothing is asked of it until then", async () => {
    serve({ "GET api/session": [CLOSED] });
    await refreshPool();
    expect(account.needsSignIn.value).toBe(true);
    expect(asked.map(({ path }) => path)).toEqual(["api/session"]);
    expect(poolError.value).toBeNull();
  });

  it("by invitation says who invited to what", async () => {
    serve({ "POST api/session": [INVITED] });
    await account.signInWith(TOKEN);
    expect(asked).toEqual([{ path: "api/session", method: "POST", body: { token: TOKEN } }]);
    expect(account.needsSignIn.value).toBe(false);
    expect(account.greeting.value).toBe("Welcome to “Lab”. Your invitation: “Friends”.");
  });

  it.each<[Answer, RegExp]>([
    [refused("invitation_expired", "This invitation has expired."), /^This invitation has expired\.$/],
    [refused("too_many_attempts", "Wait a minute, then try again.", 429), /^Wait a minute/],
    [new TypeError("Failed to fetch"), /cannot be reached/],
    [new Refusal(502, {}), /an error \(502\)/],
    [[], /does not understand/],
  ])("that fails with %j leaves the form with one sentence", async (answer, sentence) => {
    serve({ "POST api/session": [answer], "GET api/session": [CLOSED] });
    await account.signInWith(TOKEN);
    expect(account.needsSignIn.value).toBe(true);
    expect(account.isSigningIn.value).toBe(false);
    expect(account.signInError.value).toMatch(sentence);
    expect(account.greeting.value).toBeNull();
  });

  it("that fails where nobody needs it takes nothing away", async () => {
    serve({ "POST api/session": [refused("invitation_used_up", "This invitation is used up.")], "GET api/session": [OPEN] });
    await account.signInWith(TOKEN);
    expect(account.needsSignIn.value).toBe(false);
    expect(account.greeting.value).toBe("This invitation is used up.");
  });

  it("is not undone by an older answer that comes late", async () => {
    let answerLate: (response: Response) => void = () => {};
    vi.stubGlobal("fetch", vi.fn((_path: string, options: RequestInit) => options.method === "POST"
      ? Promise.resolve(new Response(JSON.stringify(INVITED)))
      : new Promise<Response>((resolve) => (answerLate = resolve))));
    const asking = account.refreshSession();
    await account.signInWith(TOKEN);
    answerLate(new Response(JSON.stringify(CLOSED)));
    await asking;
    expect(account.needsSignIn.value).toBe(false);
  });

  it("names the operator as such", () => {
    expect(welcomeSentence(decodeSession({ ...INVITED, role: "operator" }))).toBe("You are signed in to “Lab” as its operator.");
    expect(welcomeSentence(decodeSession({ can_chat: true, role: "chat" }))).toBe("Welcome to the pool. An invitation let you in.");
  });
});

describe("a session that ends in mid-use", () => {
  const OVER = refused("sign_in_needed", "Sign in first.", 401);

  it("brings the sign-in back by the pool's poll", async () => {
    serve({ "GET api/session": [INVITED, CLOSED], "GET pool": [OVER] });
    await refreshPool();
    expect(account.needsSignIn.value).toBe(true);
    expect(account.hasEnded.value).toBe(true);
    expect(poolError.value).toBeNull();
  });

  it("keeps the question, which can be asked again after signing in", async () => {
    serve({ "GET api/session": [INVITED, CLOSED], "POST v1/chat/completions": [OVER] });
    await account.refreshSession();
    pool.value = POOL;
    await chat.ask("Precious words");
    expect(account.hasEnded.value).toBe(true);
    expect(chat.path.value.map(({ text }) => text)).toEqual(["Precious words", ""]);
    expect(chat.path.value.at(-1)?.facts).toMatchObject({ finish: "error", error: "Sign in first." });
  });

  it("is not believed when the coordinator cannot be asked", async () => {
    serve({ "GET api/session": [INVITED, new TypeError("gone")] });
    await account.refreshSession();
    await account.noteFailure(new PoolError("x", "sign_in_needed", null, 401));
    expect(account.needsSignIn.value).toBe(false);
  });

  it("is told from other refusals", () => {
    expect(isSignInNeeded(new PoolError("x", "bad_key", null, 401))).toBe(true);
    expect(isSignInNeeded(new PoolError("x", "operators_only", null, 403))).toBe(false);
    expect(isSignInNeeded(new Error("401"))).toBe(false);
  });

  it("is said no more after signing in again", async () => {
    serve({ "GET api/session": [INVITED, CLOSED], "POST api/session": [INVITED] });
    await account.refreshSession();
    await account.refreshSession();
    expect(account.hasEnded.value).toBe(true);
    await account.signInWith(TOKEN);
    expect(account.hasEnded.value).toBe(false);
  });
});

describe("signing out", () => {
  async function chatOnce(): Promise<void> {
    serve({ "GET api/session": [INVITED, CLOSED], "DELETE api/session": [{}], "POST v1/chat/completions": [new TypeError("gone")] });
    await account.refreshSession();
    pool.value = POOL;
    await chat.ask("Hi");
  }

  it("leaves the chats in the browser", async () => {
    await chatOnce();
    await leave(false);
    expect(account.needsSignIn.value).toBe(true);
    expect(account.hasEnded.value, "it was the person's own wish").toBe(false);
    expect(chat.summaries.value).toHaveLength(1);
  });

  it("deletes them when asked to", async () => {
    await chatOnce();
    await leave(true);
    expect(chat.summaries.value).toEqual([]);
    expect(chat.path.value).toEqual([]);
  });

  it("that the coordinator did not hear of changes nothing", async () => {
    serve({ "GET api/session": [INVITED], "DELETE api/session": [new TypeError("gone")] });
    await account.refreshSession();
    await expect(leave(true)).rejects.toThrow(/cannot be reached/);
    expect(account.session.value?.role).toBe("chat");
  });
});
