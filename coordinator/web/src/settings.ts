// What the reader chose, kept in localStorage. `null` means: leave it to the pool.

import { effect, signal } from "@preact/signals";

import { isRecord } from "./errors";

export interface Settings {
  model: string | null;
  systemPrompt: string;
  temperature: number | null;
  maxTokens: number | null;
  isSidebarOpen: boolean;
}

const KEY = "decentllm.settings";

export const DEFAULTS: Settings = {
  model: null,
  systemPrompt: "",
  temperature: null,
  maxTokens: null,
  isSidebarOpen: true,
};

export const MAX_TEMPERATURE = 2;
export const MAX_MAX_TOKENS = 1_000_000;

export function decodeSettings(text: string | null): Settings {
  let stored: unknown;
  try {
    stored = JSON.parse(text ?? "{}");
  } catch {
    return DEFAULTS;
  }
  if (!isRecord(stored)) return DEFAULTS;
  const { model, systemPrompt, temperature, maxTokens, isSidebarOpen } = stored;
  return {
    model: typeof model === "string" ? model : null,
    systemPrompt: typeof systemPrompt === "string" ? systemPrompt : "",
    temperature: isBetween(temperature, 0, MAX_TEMPERATURE) ? temperature : null,
    maxTokens: isBetween(maxTokens, 1, MAX_MAX_TOKENS) ? Math.round(maxTokens) : null,
    isSidebarOpen: isSidebarOpen !== false,
  };
}

function isBetween(value: unknown, least: number, most: number): value is number {
  return typeof value === "number" && value >= least && value <= most;
}

function stored(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // site data is blocked
  }
}

export const settings = signal<Settings>(decodeSettings(stored()));

export function change(part: Partial<Settings>): void {
  settings.value = { ...settings.value, ...part };
}

effect(() => {
  const text = JSON.stringify(settings.value);
  try {
    localStorage.setItem(KEY, text);
  } catch {
    // Blocked or full: the choice then holds until the page closes.
  }
});
