// Splits a growing Markdown text into top-level blocks. A block that can no longer change is parsed and drawn once;
// only the last ones are drawn again as text arrives. Parsing everything per token is what freezes long chats
// elsewhere (open-webui#3620, llama.cpp#18187).

import MarkdownIt from "markdown-it";

export type BlockKind = "markdown" | "plain" | "code";

export interface Block {
  kind: BlockKind;
  /** The slice of the text; all blocks' slices together are the text. */
  raw: string;
  isOpen: boolean;
}

/** No more than this much text is parsed at once. */
export const WINDOW_CHARACTERS = 48_000;
/** A single list, table or paragraph longer than this is shown as plain text: nobody reads it, and it must not freeze. */
export const MAX_RICH_CHARACTERS = 24_000;
/**
 * How many trailing blocks may still change. One is not enough: in "1. a\n\n2" the "2" is a paragraph of its own
 * until "." and " " arrive and make it the list's next item.
 */
const NUM_UNSTABLE = 2;

const FENCE = /^ {0,3}(`{3,}|~{3,})([^\n]*)\n?/;

const blockParser = new MarkdownIt({ html: false, maxNesting: 20 });
blockParser.core.ruler.enableOnly(["normalize", "block"]);
blockParser.block.ruler.disable("reference");

export class BlockSplitter {
  private text = "";
  private offset = 0;
  private stable: Block[] = [];
  private closingFence: RegExp | null = null;

  /** The blocks of `text`. Cheap when `text` continues the one before. */
  update(text: string, isComplete: boolean): Block[] {
    if (!text.startsWith(this.text)) this.reset();
    this.text = text;
    while (text.length - this.offset > WINDOW_CHARACTERS) this.settleWindow();
    const open = this.closingFence === null ? this.settle(text.slice(this.offset)) : this.takeFence(text.length, false);
    return [...this.stable, ...open.map((block, index) => ({ ...block, isOpen: !isComplete && index === open.length - 1 }))];
  }

  private reset(): void {
    this.offset = 0;
    this.stable = [];
    this.closingFence = null;
  }

  /** Makes blocks stable until what is left fits into one window. */
  private settleWindow(): void {
    const end = this.offset + WINDOW_CHARACTERS;
    if (this.closingFence !== null) {
      this.takeFence(end, true);
      return;
    }
    const window = this.text.slice(this.offset, end);
    const open = this.settle(window);
    const first = open[0];
    if (first === undefined || first.raw.length < window.length) {
      if (first !== undefined && open.length > 1) this.keep(first);
      return;
    }
    const fence = FENCE.exec(window);
    if (fence?.[1] === undefined) {
      this.keep({ kind: "plain", raw: cutAtLine(window), isOpen: false });
      return;
    }
    const closingFence = new RegExp(`^ {0,3}${fence[1][0] === "~" ? "~" : "`"}{${fence[1].length},}[ \\t]*$`, "m");
    const isClosed = closingFence.test(window.slice(fence[0].length));
    if (!isClosed) this.closingFence = closingFence;
    this.keep({ kind: "markdown", raw: isClosed ? window : cutAtLine(window), isOpen: false });
  }

  /** Inside a code block too long for one window: pieces of plain code up to its closing fence. */
  private takeFence(end: number, isFull: boolean): Block[] {
    const piece = this.text.slice(this.offset, end);
    const closing = this.closingFence?.exec(piece);
    if (closing != null && (isFull || piece.length > closing.index + closing[0].length)) {
      const newline = piece.indexOf("\n", closing.index);
      this.closingFence = null;
      this.keep({ kind: "code", raw: newline < 0 ? piece : piece.slice(0, newline + 1), isOpen: false });
      return this.settle(this.text.slice(this.offset, end));
    }
    if (!isFull) return piece === "" ? [] : [{ kind: "code", raw: piece, isOpen: true }];
    this.keep({ kind: "code", raw: cutAtLine(piece), isOpen: false });
    return [];
  }

  /** Keeps all blocks of `tail` but the last ones, which are returned. */
  private settle(tail: string): Block[] {
    const blocks = splitBlocks(tail);
    const numStable = Math.max(0, blocks.length - NUM_UNSTABLE);
    for (const block of blocks.slice(0, numStable)) this.keep(block);
    return blocks.slice(numStable);
  }

  private keep(block: Block): void {
    this.stable.push(block);
    this.offset += block.raw.length;
  }
}

export function splitBlocks(text: string): Block[] {
  if (text === "") return [];
  const lineStarts = [0];
  // The parser counts lines after it has turned CR LF and CR into LF; count the same way.
  for (const end of text.matchAll(/\r\n?|\n/g)) lineStarts.push(end.index + end[0].length);
  const starts: number[] = [];
  for (const token of blockParser.parse(text, {})) {
    if (token.level === 0 && token.nesting >= 0 && token.map !== null) starts.push(lineStarts[token.map[0]] ?? text.length);
  }
  if (starts.length === 0) return [{ kind: "markdown", raw: text, isOpen: true }];
  starts[0] = 0;
  return starts.map((start, index) => {
    const raw = text.slice(start, starts[index + 1] ?? text.length);
    return { kind: kindOf(raw), raw, isOpen: true };
  });
}

function kindOf(raw: string): BlockKind {
  return raw.length > MAX_RICH_CHARACTERS && !FENCE.test(raw) ? "plain" : "markdown";
}

function cutAtLine(piece: string): string {
  const newline = piece.lastIndexOf("\n");
  return newline > 0 ? piece.slice(0, newline + 1) : piece;
}
