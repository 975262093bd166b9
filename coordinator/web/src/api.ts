// The coordinator's HTTP interface. What arrives is checked here, field by field: past this file all types hold.

import { Comeback } from "./comeback";
import { nameOf, nullableNumberOf, numberOf, recordsOf, sentenceFrom } from "./decode";
import { errorFromBody, isRecord, PoolError, Silent, StreamCut } from "./errors";
import { decodeForecast, type Forecast } from "./forecast";
import { jsonOf, read, request } from "./http";
import { checkedJoinLink } from "./joinLink";
import { readEvents } from "./sse";

export type ModelState = "ready" | "loading" | "incomplete";

export interface PoolModel {
  id: string;
  state: ModelState;
  message: string;
  numLayers: number;
  contextLength: number | null;
  /** What is expected of it; null while no lane is complete. */
  forecast: Forecast | null;
  numLanes: number;
}

export interface PoolDevice {
  name: string;
  state: string;
  model: string | null;
  layers: string | null;
  /** From 1; null outside of complete lanes. */
  lane: number | null;
  reason: string;
  doneBytes: number;
  totalBytes: number;
}

export interface PoolNode {
  name: string;
  state: string;
  devices: PoolDevice[];
}

export interface Pool {
  name: string;
  models: PoolModel[];
  nodes: PoolNode[];
  /** How many requests wait for a place. */
  numWaiting: number;
  /** For contributors; closed pools hand out theirs by invitation. */
  joinLink: string | null;
}

export interface ChainNode {
  name: string;
  layers: string;
}

/** Where a waiting request stands. */
export interface QueuePlace {
  place: number;
  numWaiting: number;
  expectedWaitS: number | null;
}

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

export interface ChatRequest {
  model: string;
  messages: ChatMessage[];
  temperature?: number;
  max_tokens?: number;
}

export type AnswerEvent =
  | { kind: "queue"; queue: QueuePlace }
  | { kind: "nodes"; nodes: ChainNode[] }
  | { kind: "text"; text: string }
  | { kind: "reasoning"; text: string }
  | { kind: "finish"; reason: string }
  | { kind: "usage"; numTokens: number }
  /** The connection is gone; whatever comes next says that it is back. */
  | { kind: "reconnecting" };

const SILENCE_LIMIT_S = 120;

export async function fetchPool(): Promise<Pool> {
  return decodePool(await read("pool"));
}

/** The answer to one request, event by event. Ends quietly when complete; otherwise throws a PoolError.
 *
 * When the connection breaks the pool goes on with the answer for a while: the page comes back for the rest of it. */
export async function* streamAnswer(chat: ChatRequest, signal: AbortSignal): AsyncGenerator<AnswerEvent> {
  const comeback = new Comeback(signal);
  try {
    yield* overBreaks(chat, comeback, signal);
  } finally {
    if (signal.aborted) comeback.end();
  }
}

async function* overBreaks(chat: ChatRequest, comeback: Comeback, signal: AbortSignal): AsyncGenerator<AnswerEvent> {
  for (;;) {
    try {
      const events = comeback.lastId === "" ? eventsOf(() => asked(chat), signal) : eventsOf(comeback.request, signal);
      for await (const { event, id } of events) {
        comeback.got(id);
        yield event;
      }
      return;
    } catch (error) {
      if (!comeback.isWorthTrying(error)) throw comeback.isGone(error) ? new StreamCut() : error;
      yield { kind: "reconnecting" };
      await comeback.pause();
    }
  }
}

function asked(chat: ChatRequest): [string, RequestInit] {
  const options = { include_usage: true, resumable: true };
  return ["v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify({ ...chat, stream: true, stream_options: options }),
  }];
}

/** One connection's worth of an answer, each event with the id under which the rest can be asked for. */
async function* eventsOf(
  ask: () => [string, RequestInit],
  signal: AbortSignal,
): AsyncGenerator<{ event: AnswerEvent; id: string }> {
  const watch = new SilenceWatch(signal);
  try {
    const [path, options] = ask();
    const response = await request(path, { ...options, signal: watch.signal });
    if (!response.ok || response.body === null) throw errorFromBody(await jsonOf(response), response.status);
    let isComplete = false;
    for await (const { data, id } of readEvents(response.body, () => watch.heard())) {
      if (data === "[DONE]") return;
      for (const event of decodeChunk(data)) {
        if (event.kind === "finish") isComplete = true;
        yield { event, id };
      }
    }
    if (!isComplete) throw new StreamCut();
  } catch (error) {
    if (error instanceof PoolError || signal.aborted) throw error;
    if (watch.hasFired) throw new Silent(SILENCE_LIMIT_S);
    // fetch and the body's reader report every network failure as a TypeError, and some browsers as an AbortError.
    if (error instanceof TypeError || error instanceof DOMException) throw new StreamCut();
    throw error;
  } finally {
    watch.stop();
  }
}

/** Aborts when nothing, not even a keep-alive, has come for a long time: a dead link need not say so. */
class SilenceWatch {
  hasFired = false;
  private readonly controller = new AbortController();
  private timer: ReturnType<typeof setTimeout> | undefined;
  private readonly onAbort = (): void => this.controller.abort();

  constructor(private readonly outer: AbortSignal) {
    outer.addEventListener("abort", this.onAbort);
    if (outer.aborted) this.controller.abort();
    this.heard();
  }

  get signal(): AbortSignal {
    return this.controller.signal;
  }

  heard(): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.hasFired = true;
      this.controller.abort();
    }, SILENCE_LIMIT_S * 1000);
  }

  stop(): void {
    clearTimeout(this.timer);
    this.outer.removeEventListener("abort", this.onAbort);
    this.controller.abort();
  }
}

export function decodeChunk(data: string): AnswerEvent[] {
  let body: unknown;
  try {
    body = JSON.parse(data);
  } catch {
    throw new PoolError("The coordinator sent something this page does not understand.", "bad_chunk");
  }
  if (!isRecord(body)) return [];
  if (isRecord(body["error"])) throw errorFromBody(body, 500);
  const events: AnswerEvent[] = [];
  const extra = body["decentllm"];
  if (isRecord(extra)) events.push(...decodeExtra(extra));
  const choice: unknown = Array.isArray(body["choices"]) ? body["choices"][0] : undefined;
  if (isRecord(choice)) events.push(...decodeChoice(choice));
  const usage = body["usage"];
  if (isRecord(usage)) events.push({ kind: "usage", numTokens: numberOf(usage["completion_tokens"]) });
  return events;
}

function decodeExtra(extra: Record<string, unknown>): AnswerEvent[] {
  const events: AnswerEvent[] = [];
  const queue = decodeQueue(extra["queue"]);
  if (queue !== null) events.push({ kind: "queue", queue });
  if (Array.isArray(extra["nodes"])) events.push({ kind: "nodes", nodes: decodeChain(extra["nodes"]) });
  return events;
}

/** Null for anything that is no place in a queue: then the page just waits. */
export function decodeQueue(value: unknown): QueuePlace | null {
  if (!isRecord(value)) return null;
  const place = numberOf(value["place"]);
  if (!Number.isSafeInteger(place) || place < 1) return null;
  const numWaiting = numberOf(value["num_waiting"]);
  return {
    place,
    numWaiting: Number.isSafeInteger(numWaiting) ? Math.max(place, numWaiting) : place,
    expectedWaitS: nullableNumberOf(value["expected_wait_s"]),
  };
}

function decodeChoice(choice: Record<string, unknown>): AnswerEvent[] {
  const events: AnswerEvent[] = [];
  const delta = isRecord(choice["delta"]) ? choice["delta"] : {};
  const reasoning = delta["reasoning_content"];
  if (typeof reasoning === "string" && reasoning !== "") events.push({ kind: "reasoning", text: reasoning });
  const content = delta["content"];
  if (typeof content === "string" && content !== "") events.push({ kind: "text", text: content });
  const reason = choice["finish_reason"];
  if (typeof reason === "string") events.push({ kind: "finish", reason });
  return events;
}

function decodeChain(nodes: unknown[]): ChainNode[] {
  return nodes.filter(isRecord).map((node) => ({ name: nameOf(node["name"]), layers: nameOf(node["layers"]) }));
}

export function decodePool(body: unknown): Pool {
  if (!isRecord(body)) throw new PoolError("The coordinator sent something this page does not understand.", "bad_pool");
  return {
    name: nameOf(body["name"]),
    models: recordsOf(body["models"]).map(decodeModel),
    nodes: recordsOf(body["nodes"]).map((node) => ({
      name: nameOf(node["name"]),
      state: nameOf(node["state"]),
      devices: recordsOf(node["devices"]).map(decodeDevice),
    })),
    numWaiting: numberOf(body["num_waiting"]),
    joinLink: checkedJoinLink(body["join_link"]),
  };
}

function decodeModel(model: Record<string, unknown>): PoolModel {
  const state = model["state"];
  return {
    id: nameOf(model["id"]),
    state: state === "ready" || state === "loading" ? state : "incomplete",
    message: sentenceFrom(model["message"]),
    numLayers: numberOf(model["num_layers"]),
    contextLength: numberOf(model["context_length"]) || null,
    forecast: decodeForecast(model["plan"]),
    numLanes: isRecord(model["plan"]) ? numberOf(model["plan"]["num_lanes"]) : 0,
  };
}

export function decodeDevice(device: Record<string, unknown>): PoolDevice {
  return {
    name: nameOf(device["name"]),
    state: nameOf(device["state"]),
    model: nameOf(device["model"]) || null,
    layers: nameOf(device["layers"]) || null,
    lane: numberOf(device["lane"]) || null,
    reason: sentenceFrom(device["reason"]),
    doneBytes: numberOf(device["done_bytes"]),
    totalBytes: numberOf(device["total_bytes"]),
  };
}
