import { Fragment } from "preact";

import type { AnswerFacts } from "../conversation";
import { formatRate, formatSeconds, plural } from "../format";
import { describeLayers } from "../layers";

/** Whose machines computed the answer, and how fast. */
export function AnsweredBy({ facts }: { facts: AnswerFacts }) {
  const figures = facts.finish === "streaming" ? [] : figuresOf(facts);
  if (facts.nodes.length === 0 && figures.length === 0) return null;
  return (
    <div class="answered-by">
      {facts.nodes.length > 0 && (
        <p class="chain" data-testid="answered-by">
          <span class="chain-label">{facts.finish === "streaming" ? "Answering: " : "Answered by "}</span>
          {facts.nodes.map((node, index) => (
            <Fragment key={index}>
              {index > 0 && " → "}
              <span class="chain-node"><bdi>{node.name}</bdi> <small>{describeLayers(node.layers)}</small></span>
            </Fragment>
          ))}
          {facts.numReroutes > 0 && <Rerouted times={facts.numReroutes} />}
        </p>
      )}
      {figures.length > 0 && <p class="figures" data-testid="figures">{figures.join(" · ")}</p>}
    </div>
  );
}

function Rerouted({ times }: { times: number }) {
  return (
    <>
      {" "}
      <span class="rerouted" data-testid="rerouted" title="A node left while it answered; others took over.">
        re-routed{times > 1 ? ` ${times} times` : ""}
      </span>
    </>
  );
}

function figuresOf(facts: AnswerFacts): string[] {
  const figures: string[] = [];
  if (facts.tokensPerSecond !== null) figures.push(formatRate(facts.tokensPerSecond));
  if (facts.timeToFirstTokenMs !== null) figures.push(`first token after ${formatSeconds(facts.timeToFirstTokenMs)}`);
  if (facts.numTokens > 0) figures.push(plural(facts.numTokens, "token"));
  return figures;
}
