import { formatSeconds } from "../format";
import { MarkdownView } from "./MarkdownView";

interface ReasoningBlockProps {
  thoughts: string;
  isThinking: boolean;
  durationMs: number | null;
}

/** A reasoning model's thoughts, folded away. */
export function ReasoningBlock({ thoughts, isThinking, durationMs }: ReasoningBlockProps) {
  const label = isThinking ? "Thinking…" : durationMs === null ? "Thoughts" : `Thought for ${formatSeconds(durationMs)}`;
  return (
    <details class={`reasoning ${isThinking ? "is-thinking" : ""}`} data-testid="reasoning">
      <summary>{label}</summary>
      <MarkdownView text={thoughts} isComplete={!isThinking} />
    </details>
  );
}
