// Single values out of JSON that somebody else wrote: each function takes anything and gives its type.

import { isRecord } from "./errors";

const MAX_NAME_CHARACTERS = 120;
const MAX_SENTENCE_CHARACTERS = 400;
const MAX_LISTED = 5_000;
/** The largest time a Date can hold (ECMA-262, section 21.4.1.1). */
const MAX_TIME_S = 8.64e12;

export function recordsOf(value: unknown): Record<string, unknown>[] {
  return Array.isArray(value) ? value.slice(0, MAX_LISTED).filter(isRecord) : [];
}

export function nameOf(value: unknown): string {
  return textOf(value, MAX_NAME_CHARACTERS);
}

export function sentenceFrom(value: unknown): string {
  return textOf(value, MAX_SENTENCE_CHARACTERS);
}

export function textOf(value: unknown, maxCharacters: number): string {
  return typeof value === "string" ? value.slice(0, maxCharacters).toWellFormed() : "";
}

export function numberOf(value: unknown): number {
  return nullableNumberOf(value) ?? 0;
}

export function nullableNumberOf(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : null;
}

/** Seconds since 1970, or null where there is no such moment. */
export function timeOf(value: unknown): number | null {
  const seconds = nullableNumberOf(value);
  return seconds !== null && seconds > 0 && seconds <= MAX_TIME_S ? seconds : null;
}
