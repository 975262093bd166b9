// An answer while it arrives. Text lands here many times a second; only what shows this answer listens.

import { type Signal, signal } from "@preact/signals";

import type { AnswerEvent, ChainNode, QueuePlace } from "./api";
import type { AnswerFacts, Finish } from "./conversation";
import { newFacts } from "./conversation";
import { splitReasoning } from "./reasoning";

export class LiveAnswer {
  readonly text: Signal<string> = signal("");
  readonly nodes: Signal<ChainNode[]> = signal([]);
  readonly numReroutes: Signal<number> = signal(0);
  /** Null unless the request waits. */
  readonly queue: Signal<QueuePlace | null> = signal(null);
  /** The connection broke, and the page is coming back for the rest. */
  readonly isReconnecting: Signal<boolean> = signal(false);
  readonly abort = new AbortController();
  finishReason: string | null = null;
  private numTokens = 0;
  private numPieces = 0;
  private firstAt: number | null = null;
  private lastAt: number | null = null;
  private thoughtUntil: number | null = null;
  private isInReasoning = false;
  private isThinking = false;

  constructor(
    readonly conversationId: string,
    readonly messageId: string,
    private readonly model: string,
    private readonly startedAt: number,
  ) {}

  take(event: AnswerEvent, now: number): void {
    // Whatever else arrives, the wait is over.
    this.queue.value = event.kind === "queue" ? event.queue : null;
    this.isReconnecting.value = event.kind === "reconnecting";
    if (event.kind === "nodes") this.takeNodes(event.nodes);
    else if (event.kind === "text") this.takeText(this.isInReasoning ? `</think>\n\n${event.text}` : event.text, false, now);
    else if (event.kind === "reasoning") this.takeText(this.isInReasoning ? event.text : `<think>${event.text}`, true, now);
    else if (event.kind === "finish") this.finishReason = event.reason;
    else if (event.kind === "usage") this.numTokens = event.numTokens;
  }

  /** Some servers send thoughts in a field of their own; here they join the text in the form that models write. */
  private takeText(text: string, isReasoning: boolean, now: number): void {
    this.isInReasoning = isReasoning;
    this.firstAt ??= now;
    this.lastAt = now;
    this.numPieces += 1;
    this.text.value += text;
    if (this.thoughtUntil === null || this.isThinking) this.noteThinking(now);
  }

  private noteThinking(now: number): void {
    this.isThinking = splitReasoning(this.text.value, false).isThinking;
    if (this.isThinking || this.thoughtUntil !== null) this.thoughtUntil = now;
  }

  private takeNodes(nodes: ChainNode[]): void {
    const before = this.nodes.value;
    const isSame = JSON.stringify(before) === JSON.stringify(nodes);
    if (before.length > 0 && !isSame) this.numReroutes.value += 1;
    if (!isSame) this.nodes.value = nodes;
  }

  facts(finish: Finish, error: string | null): AnswerFacts {
    const numTokens = this.numTokens || this.numPieces;
    const elapsedMs = this.firstAt === null || this.lastAt === null ? 0 : this.lastAt - this.firstAt;
    return {
      ...newFacts(this.model),
      nodes: this.nodes.value,
      numReroutes: this.numReroutes.value,
      finish,
      error,
      numTokens,
      timeToFirstTokenMs: this.firstAt === null ? null : this.firstAt - this.startedAt,
      // The first token is the prompt's work; the rate is that of the ones after it.
      tokensPerSecond: numTokens > 1 && elapsedMs > 0 ? ((numTokens - 1) * 1000) / elapsedMs : null,
      reasoningMs: this.thoughtUntil === null || this.firstAt === null ? null : this.thoughtUntil - this.firstAt,
    };
  }
}
