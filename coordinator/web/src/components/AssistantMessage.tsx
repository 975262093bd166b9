import { memo } from "../memo";
import { askAgain } from "../chat";
import type { AnswerFacts, Message } from "../conversation";
import type { LiveAnswer } from "../live";
import { whyNobodyToAsk } from "../pool";
import { splitReasoning } from "../reasoning";
import { AnsweredBy } from "./AnsweredBy";
import { CopyButton } from "./CopyButton";
import { ErrorNote } from "./ErrorNote";
import { AgainIcon } from "./Icons";
import { MarkdownView } from "./MarkdownView";
import { QueueNote } from "./QueueNote";
import { ReconnectingNote } from "./ReconnectingNote";
import { ReasoningBlock } from "./ReasoningBlock";
import { useFlow } from "./useFlow";
import { Versions } from "./Versions";

interface AssistantMessageProps {
  message: Message;
  live: LiveAnswer | null;
  isLast: boolean;
  isLocked: boolean;
}

export const AssistantMessage = memo(({ message, live, isLast, isLocked }: AssistantMessageProps) => (
  <article class={`message assistant ${isLast ? "is-last" : ""}`} aria-busy={live !== null}>
    <h2 class="sr-only">The pool answered</h2>
    <AnswerText message={message} live={live} />
    {live === null && message.facts !== null && (
      <Outcome facts={message.facts} isEmpty={message.text === ""} retry={isLocked || whyNobodyToAsk.value !== null ? null : () => void askAgain(message.id)} />
    )}
    {live === null ? (
      <div class="actions">
        <Versions id={message.id} isLocked={isLocked} />
        {message.text !== "" && <CopyButton text={splitReasoning(message.text).answer} />}
        {!isBroken(message.facts) && (
          <button type="button" class="small-button" data-testid="regenerate" onClick={() => void askAgain(message.id)}
            disabled={isLocked || whyNobodyToAsk.value !== null} aria-label="Answer again"
            title={whyNobodyToAsk.value ?? "Answer again"}>
            <AgainIcon />
          </button>
        )}
        {message.facts !== null && <AnsweredBy facts={message.facts} />}
      </div>
    ) : (
      <div class="actions"><LiveFacts live={live} /></div>
    )}
  </article>
));

function LiveFacts({ live }: { live: LiveAnswer }) {
  return <AnsweredBy facts={{ ...live.facts("streaming", null), nodes: live.nodes.value, numReroutes: live.numReroutes.value }} />;
}

/** The same component before and after the end of an answer, so that what is drawn then stays. */
function AnswerText({ message, live }: { message: Message; live: LiveAnswer | null }) {
  const text = useFlow(live) ?? message.text;
  const isComplete = live === null;
  const { thoughts, isThinking, answer } = splitReasoning(text, isComplete);
  const isWaiting = !isComplete && answer === "" && thoughts === null;
  const queue = live?.queue.value ?? null;
  return (
    <div data-testid="message-assistant" class="answer">
      {thoughts !== null && <ReasoningBlock thoughts={thoughts} isThinking={isThinking} durationMs={isComplete ? (message.facts?.reasoningMs ?? null) : null} />}
      {isWaiting ? queue === null && <Waiting /> : <MarkdownView text={answer} isComplete={isComplete} />}
      {queue !== null && <QueueNote queue={queue} />}
      {live?.isReconnecting.value === true && <ReconnectingNote />}
    </div>
  );
}

function Waiting() {
  return <p class="waiting"><span class="sr-only">Waiting for the first word</span><i /><i /><i /></p>;
}

/** Then the note on what happened offers to try again. */
function isBroken(facts: AnswerFacts | null): boolean {
  return facts !== null && ["error", "interrupted", "streaming"].includes(facts.finish);
}

/** How the answer ended, where that needs a word. */
function Outcome({ facts, isEmpty, retry }: { facts: AnswerFacts; isEmpty: boolean; retry: (() => void) | null }) {
  if (facts.finish === "error") return <ErrorNote message={facts.error ?? "The pool could not answer."} retry={retry} />;
  if (facts.finish === "interrupted" || facts.finish === "streaming") {
    return <ErrorNote message="This answer was cut off when the page closed." retry={retry} />;
  }
  if (facts.finish === "length") return <p class="outcome">Cut at the longest answer that the settings allow.</p>;
  if (facts.finish === "stopped") return <p class="outcome">{isEmpty ? "Stopped before the first word." : "Stopped."}</p>;
  return isEmpty ? <p class="outcome">The model answered with nothing.</p> : null;
}
