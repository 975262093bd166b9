// What a person can do with conversations: ask, stop, ask again, edit, switch, rename, delete.

import { computed, signal } from "@preact/signals";

import { noteFailure } from "./account";
import { type ChatMessage, type ChatRequest, streamAnswer } from "./api";
import {
  append, chooseVersion, type Conversation, decodeConversation, type Finish, type Message, newConversation, newFacts, newId,
  pathOf, replaceMessage, type Summary, summaryOf,
} from "./conversation";
import { sentenceOf } from "./errors";
import { LiveAnswer } from "./live";
import { model, refreshPool, whyNobodyToAsk } from "./pool";
import { withoutReasoning } from "./reasoning";
import { settings } from "./settings";
import { type ConversationStore, MemoryStore, newestFirst } from "./store";

/** How often a growing answer is saved, so that a closed page loses little. */
const SAVE_EVERY_MS = 2_000;

export const current = signal<Conversation>(newConversation(Date.now()));
export const summaries = signal<Summary[]>([]);
export const removed = signal<Conversation | null>(null);
export const storageWarning = signal<string | null>(null);
/** Answers that arrive now, by conversation: one goes on while another conversation is read. */
export const liveAnswers = signal<ReadonlyMap<string, LiveAnswer>>(new Map());
export const currentLive = computed(() => liveAnswers.value.get(current.value.id) ?? null);
export const path = computed(() => pathOf(current.value));

let store: ConversationStore = new MemoryStore();

export async function useStore(opened: ConversationStore): Promise<void> {
  store = opened;
  if (!opened.isLasting) storageWarning.value = "This browser does not keep site data: chats are lost when the page closes.";
  summaries.value = await store.list();
}

// --- conversations

export function startNew(): void {
  current.value = newConversation(Date.now());
}

/** Opens a stored conversation; says whether there is one. */
export async function open(id: string): Promise<boolean> {
  if (current.value.id === id) return true;
  const loaded = await store.load(id);
  if (loaded === null) return false;
  current.value = withLiveFacts(loaded);
  return true;
}

/** A stored message marked as streaming is read back as cut off, unless it is still arriving in this page. */
function withLiveFacts(conversation: Conversation): Conversation {
  const live = liveAnswers.value.get(conversation.id);
  if (live === undefined) return conversation;
  return replaceMessage(conversation, live.messageId, { facts: live.facts("streaming", null) });
}

export async function rename(id: string, title: string): Promise<void> {
  const trimmed = title.trim().slice(0, 120);
  if (trimmed !== "") await update(id, (conversation) => ({ ...conversation, title: trimmed }));
}

export async function remove(id: string): Promise<void> {
  stop(id);
  const conversation = current.value.id === id ? current.value : await store.load(id);
  await store.remove(id);
  summaries.value = summaries.value.filter((summary) => summary.id !== id);
  removed.value = conversation;
  if (current.value.id === id) startNew();
}

export async function undoRemove(): Promise<void> {
  const conversation = removed.value;
  removed.value = null;
  if (conversation === null) return;
  // Through the decoder: an answer that was arriving when its conversation was deleted is one that was cut off.
  const restored = decodeConversation(conversation) ?? conversation;
  await save(restored);
  current.value = restored;
}

export function stopAll(): void {
  for (const id of liveAnswers.value.keys()) stop(id);
}

export async function removeAll(): Promise<void> {
  stopAll();
  await store.clear();
  summaries.value = [];
  startNew();
}

export async function load(id: string): Promise<Conversation | null> {
  return current.value.id === id ? current.value : await store.load(id);
}

async function update(id: string, step: (conversation: Conversation) => Conversation): Promise<void> {
  const before = await load(id);
  if (before === null) return;
  // Read again: `current` may have moved on while the store was read.
  const after = step(current.value.id === id ? current.value : before);
  if (current.value.id === id) current.value = after;
  await save(after);
}

async function save(conversation: Conversation): Promise<void> {
  const others = summaries.value.filter((summary) => summary.id !== conversation.id);
  summaries.value = newestFirst([summaryOf(conversation), ...others]);
  try {
    await store.save(conversation);
  } catch {
    storageWarning.value = "This browser's storage is full: new messages are lost when the page closes.";
  }
}

// --- asking

/** Nothing happens while it is not known which model answers: the page says so where it is asked (whyNobodyToAsk). */
export async function ask(text: string, parent: string | null = current.value.leaf): Promise<void> {
  if (whyNobodyToAsk.value !== null) return;
  const question = newMessage(parent, "user", text);
  const conversation = append(current.value, question);
  current.value = conversation;
  await answer(conversation, question);
}

/** Sends a changed question; the old one stays as another version. */
export async function editAndAsk(id: string, text: string): Promise<void> {
  const message = current.value.messages.find((candidate) => candidate.id === id);
  if (message !== undefined) await ask(text, message.parent);
}

/** A new answer to the same question; the old one stays as another version. */
export async function askAgain(answerId: string): Promise<void> {
  const old = current.value.messages.find((message) => message.id === answerId);
  const question = current.value.messages.find((message) => message.id === old?.parent);
  if (question !== undefined) await answer(current.value, question);
}

export function showVersion(id: string): void {
  current.value = chooseVersion(current.value, id);
  void save(current.value);
}

export function stop(conversationId = current.value.id): void {
  liveAnswers.value.get(conversationId)?.abort.abort();
}

function newMessage(parent: string | null, role: Message["role"], text: string): Message {
  return { id: newId(), parent, role, text, createdAt: Date.now(), facts: null };
}

async function answer(conversation: Conversation, question: Message): Promise<void> {
  const modelId = model.value?.id;
  if (modelId === undefined || liveAnswers.value.has(conversation.id)) return;
  const reply: Message = { ...newMessage(question.id, "assistant", ""), facts: newFacts(modelId) };
  const request = requestFor(modelId, pathOf(conversation, question.id));
  const withReply = append(conversation, reply);
  const live = new LiveAnswer(conversation.id, reply.id, modelId, performance.now());
  setLive(live, true);
  current.value = withReply;
  void save(withReply);
  const { finish, error } = await receive(live, request);
  const facts = live.facts(finish, error);
  setLive(live, false);
  await update(conversation.id, (latest) => replaceMessage(latest, reply.id, { text: live.text.value, facts }));
  if (error !== null) void refreshPool();
}

async function receive(live: LiveAnswer, request: ChatRequest): Promise<{ finish: Finish; error: string | null }> {
  let savedAt = performance.now();
  try {
    for await (const event of streamAnswer(request, live.abort.signal)) {
      live.take(event, performance.now());
      if (performance.now() - savedAt < SAVE_EVERY_MS) continue;
      savedAt = performance.now();
      void savePartly(live);
    }
    return { finish: live.finishReason === "length" ? "length" : "stop", error: null };
  } catch (error) {
    if (live.abort.signal.aborted) return { finish: "stopped", error: null };
    await noteFailure(error);
    return { finish: "error", error: sentenceOf(error) };
  }
}

/** Only into the store: the page shows a growing answer from its LiveAnswer. */
async function savePartly(live: LiveAnswer): Promise<void> {
  const conversation = await load(live.conversationId);
  if (conversation === null || !liveAnswers.value.has(live.conversationId)) return;
  const change = { text: live.text.value, facts: live.facts("streaming", null) };
  await store.save(replaceMessage(conversation, live.messageId, change)).catch(() => {}); // `save` warns at the end
}

function setLive(live: LiveAnswer, isLive: boolean): void {
  const answers = new Map(liveAnswers.value);
  if (isLive) answers.set(live.conversationId, live);
  else answers.delete(live.conversationId);
  liveAnswers.value = answers;
}

export function requestFor(modelId: string, messages: Message[]): ChatRequest {
  const { systemPrompt, temperature, maxTokens } = settings.value;
  const sent: ChatMessage[] = systemPrompt.trim() === "" ? [] : [{ role: "system", content: systemPrompt }];
  for (const message of messages) {
    const content = message.role === "assistant" ? withoutReasoning(message.text) : message.text;
    // An answer that failed before its first word is no part of the conversation.
    if (content.trim() === "") continue;
    const last = sent.at(-1);
    // Many chat templates refuse two questions in a row, which such an answer leaves behind.
    if (last?.role === message.role) last.content += `\n\n${content.toWellFormed()}`;
    else sent.push({ role: message.role, content: content.toWellFormed() });
  }
  return {
    model: modelId,
    messages: sent,
    ...(temperature === null ? {} : { temperature }),
    ...(maxTokens === null ? {} : { max_tokens: maxTokens }),
  };
}
