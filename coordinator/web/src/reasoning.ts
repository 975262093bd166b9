// Reasoning models write their thoughts between <think> and </think> before the answer.

export interface Reasoning {
  thoughts: string | null;
  isThinking: boolean;
  answer: string;
}

const OPEN = "<think>";
const CLOSE = "</think>";

/**
 * Only at the start of a message: later on the same letters are text that the model talks about.
 * Some chat templates put the opening tag in the prompt, so that only the closing one arrives.
 */
export function splitReasoning(text: string, isComplete = true): Reasoning {
  const trimmed = text.trimStart();
  if (trimmed.startsWith(OPEN)) return splitAtClose(trimmed.slice(OPEN.length), !isComplete);
  if (!isComplete && OPEN.startsWith(trimmed)) return { thoughts: null, isThinking: false, answer: "" };
  const close = text.indexOf(`\n${CLOSE}`);
  if (close >= 0 && !text.slice(0, close).includes("`" + CLOSE)) return splitAtClose(text, false);
  return { thoughts: null, isThinking: false, answer: text };
}

function splitAtClose(text: string, isGrowing: boolean): Reasoning {
  const close = text.indexOf(CLOSE);
  if (close >= 0) {
    const thoughts = text.slice(0, close).trim();
    return { thoughts: thoughts || null, isThinking: false, answer: text.slice(close + CLOSE.length).trimStart() };
  }
  return { thoughts: (isGrowing ? withoutPartialClose(text) : text).trim(), isThinking: isGrowing, answer: "" };
}

/** While streaming, the closing tag may have arrived in part: it must not flash up as text. */
function withoutPartialClose(text: string): string {
  for (let length = Math.min(CLOSE.length - 1, text.length); length > 0; length -= 1) {
    if (text.endsWith(CLOSE.slice(0, length))) return text.slice(0, -length);
  }
  return text;
}

/** What goes back to the model: chat templates expect earlier answers without their thoughts. */
export function withoutReasoning(text: string): string {
  return splitReasoning(text).answer;
}
