// Colours for code. The highlighter is a file of its own that is fetched when the first code block appears.

import { computed, signal } from "@preact/signals";
import type { HLJSApi } from "highlight.js";

/** Above this a block stays uncoloured: colouring is slower than reading on. */
export const MAX_HIGHLIGHT_CHARACTERS = 20_000;
/** A block that still grows is coloured again with every frame. */
const MAX_OPEN_HIGHLIGHT_CHARACTERS = 4_000;

const highlighter = signal<HLJSApi | null>(null);
/** Whoever draws code reads this, to draw it again once colours are there. */
export const isHighlighterReady = computed(() => highlighter.value !== null);
let isAsked = false;

/** The code as HTML with `hljs-*` classes, or null when it should be shown as it is. */
export function highlight(code: string, language: string, isOpen: boolean): string | null {
  if (language === "" || code.length > (isOpen ? MAX_OPEN_HIGHLIGHT_CHARACTERS : MAX_HIGHLIGHT_CHARACTERS)) return null;
  const loaded = highlighter.peek();
  if (loaded === null) {
    askForHighlighter();
    return null;
  }
  if (loaded.getLanguage(language) === undefined) return null;
  return loaded.highlight(code, { language, ignoreIllegals: true }).value;
}

function askForHighlighter(): void {
  if (isAsked) return;
  isAsked = true;
  import("./highlighter").then(
    (module) => (highlighter.value = module.default),
    () => (isAsked = false), // offline: plain code is fine, and the next block asks again
  );
}
