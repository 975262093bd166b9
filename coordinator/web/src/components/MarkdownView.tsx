import { useLayoutEffect, useMemo, useRef } from "preact/hooks";

import { type Block, BlockSplitter } from "../blocks";
import { isHighlighterReady } from "../highlight";
import { renderMarkdown } from "../markdown";
import { memo } from "../memo";
import { copyText } from "../clipboard";

/** Markdown text that may still grow. Only blocks whose text changed are drawn again. */
export const MarkdownView = memo(({ text, isComplete }: { text: string; isComplete: boolean }) => {
  const splitter = useRef<BlockSplitter | null>(null);
  splitter.current ??= new BlockSplitter();
  const blocks = splitter.current.update(text, isComplete);
  return (
    <div class="prose" onClick={copyCode}>
      {blocks.map((block, index) => <BlockView key={index} kind={block.kind} raw={block.raw} isOpen={block.isOpen} />)}
    </div>
  );
});

const BlockView = memo(({ kind, raw, isOpen }: Block) => {
  if (kind === "code") return <pre class="code-piece"><code>{raw}</code></pre>;
  if (kind === "plain") return <p class="plain" dir="auto">{raw}</p>;
  return <RichBlock raw={raw} isOpen={isOpen} />;
});

function RichBlock({ raw, isOpen }: { raw: string; isOpen: boolean }) {
  const place = useRef<HTMLDivElement>(null);
  const isColoured = isHighlighterReady.value;
  const fragment = useMemo(() => renderMarkdown(raw, isOpen), [raw, isOpen, isColoured]);
  useLayoutEffect(() => place.current?.replaceChildren(fragment), [fragment]);
  return <div ref={place} dir="auto" />;
}

const COPIED_SHOWN_MS = 1_500;

/** The copy buttons come out of the Markdown renderer, so one listener serves them all. */
async function copyCode(event: MouseEvent): Promise<void> {
  const button = event.target instanceof Element ? event.target.closest("button.code-copy") : null;
  const code = button?.closest(".code")?.querySelector("code");
  if (button == null || code == null || !(await copyText(code.textContent ?? ""))) return;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), COPIED_SHOWN_MS);
}
