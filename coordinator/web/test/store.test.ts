import "fake-indexeddb/auto";

import { describe, expect, it, vi } from "vitest";

import {
  append, chooseVersion, type Conversation, decodeConversation, type Message, newConversation, newFacts, pathOf,
  replaceMessage, titleFrom, toMarkdown, versionsOf,
} from "../src/conversation";
import { type ConversationStore, MemoryStore, openStore } from "../src/store";

function message(id: string, parent: string | null, role: Message["role"] = "user"): Message {
  return { id, parent, role, text: `text of ${id}`, createdAt: 1, facts: role === "assistant" ? newFacts("m") : null };
}

function grown(...messages: Message[]): Conversation {
  return messages.reduce(append, newConversation(1));
}

/** A question with two answers, the first of which was followed by another question. */
const BRANCHED = grown(
  message("q1", null), message("a1", "q1", "assistant"), message("q2", "a1"), message("a2", "q1", "assistant"),
);

const ids = (conversation: Conversation): string[] => pathOf(conversation).map(({ id }) => id);

describe("a conversation", () => {
  it("shows the newest branch, and keeps the others", () => {
    expect(ids(BRANCHED)).toEqual(["q1", "a2"]);
    expect(versionsOf(BRANCHED, "a2")).toEqual({ index: 1, ids: ["a1", "a2"] });
    expect(ids(chooseVersion(BRANCHED, "a1"))).toEqual(["q1", "a1", "q2"]);
  });

  it("takes its title from the first question", () => {
    expect(grown({ ...message("q", null), text: "  Why?\nBecause." }).title).toBe("Why?");
    expect(titleFrom("x".repeat(100))).toHaveLength(60);
    expect(titleFrom("<img src=x>")).toBe("<img src=x>");
    expect(titleFrom(" \n ")).toBe("New chat");
  });

  it("changes one message and no other", () => {
    const changed = replaceMessage(BRANCHED, "a1", { text: "new" });
    expect(changed.messages.filter((one, index) => one !== BRANCHED.messages[index]).map(({ id }) => id)).toEqual(["a1"]);
  });

  it("can be written as Markdown", () => {
    expect(toMarkdown(BRANCHED)).toBe("# text of q1\n\n## You\n\ntext of q1\n\n## Pool\n\ntext of a2\n");
  });
});

describe("decodeConversation", () => {
  it("gives back what was stored", () => {
    const finished = replaceMessage(BRANCHED, "a2", { facts: { ...newFacts("m"), finish: "stop", nodes: [{ name: "n", layers: "0-3" }] } });
    const read = decodeConversation(JSON.parse(JSON.stringify(finished)));
    expect(read?.messages.at(-1)).toEqual(finished.messages.at(-1));
    expect(read?.leaf).toBe("a2");
  });

  it("reads an answer that was still arriving as cut off", () => {
    expect(decodeConversation(BRANCHED)?.messages.at(-1)?.facts?.finish).toBe("interrupted");
  });

  it.each([null, 1, "x", [], {}, { id: 1, messages: [] }, { id: "a", messages: "b" }])("refuses %j", (value) => {
    expect(decodeConversation(value)).toBeNull();
  });

  it("leaves out messages that make no sense, and survives a cycle (G16)", () => {
    const read = decodeConversation({
      id: "c", title: 5, leaf: "nowhere",
      messages: [{ id: "a", parent: "b", role: "user", text: "<script>" }, { id: "b", parent: "a", role: "user", text: "x" }, { role: "system" }, 7],
    });
    expect(read?.title).toBe("New chat");
    expect(read === null ? [] : ids(read)).toEqual(["a", "b"]);
  });
});

describe.each([
  ["IndexedDB", () => openStore(`test-${Math.random()}`)],
  ["memory", () => Promise.resolve<ConversationStore>(new MemoryStore())],
])("a store in %s", (name, make) => {
  it("keeps, lists by newest first, and forgets", async () => {
    const store = await make();
    expect(store.isLasting).toBe(name === "IndexedDB");
    const older = { ...BRANCHED, id: "older", updatedAt: 1 };
    const newer = { ...BRANCHED, id: "newer", updatedAt: 2, title: "Newer" };
    await store.save(older);
    await store.save(newer);
    expect(await store.list()).toEqual([
      { id: "newer", title: "Newer", updatedAt: 2 },
      { id: "older", title: older.title, updatedAt: 1 },
    ]);
    expect((await store.load("older"))?.messages).toHaveLength(4);
    await store.remove("older");
    expect(await store.load("older")).toBeNull();
    await store.clear();
    expect(await store.list()).toEqual([]);
  });
});

it("falls back to memory where the browser forbids storage", async () => {
  vi.stubGlobal("indexedDB", { open: () => { throw new DOMException("denied", "SecurityError"); } });
  expect((await openStore("forbidden")).isLasting).toBe(false);
  vi.unstubAllGlobals();
});
