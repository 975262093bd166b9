import { ask } from "../chat";
import { type Holder, holdersOf } from "../layers";
import { model, pool, poolError } from "../pool";
import { isContributeOpen } from "../view";
import { Logo } from "./Icons";
import { LayerStrip } from "./LayerStrip";

const IDEAS = [
  "Explain how a bicycle stays upright",
  "Write a Python function that finds duplicate files",
  "Plan three quiet days in the mountains",
  "What is a good way to learn the names of the stars?",
];

export function Welcome() {
  const shown = model.value;
  const seen = pool.value;
  const isReady = shown?.state === "ready" && poolError.value === null;
  return (
    <main class="welcome">
      <Logo />
      <h1>What would you like to know?</h1>
      {seen !== null && shown !== null && (
        <div class="welcome-pool">
          <LayerStrip holders={holdersOf(seen, shown.id)} numLayers={shown.numLayers} />
          <p class="quiet">
            {isReady && describeChain(holdersOf(seen, shown.id))}
            <button type="button" class="text-button" aria-haspopup="dialog" onClick={() => (isContributeOpen.value = true)}>{isReady ? "Add yours" : "Contribute a computer"}</button>
          </p>
        </div>
      )}
      <ul class="ideas">
        {IDEAS.map((idea) => (
          <li key={idea}>
            <button type="button" onClick={() => void ask(idea)} disabled={!isReady}>{idea}</button>
          </li>
        ))}
      </ul>
    </main>
  );
}

function describeChain(holders: Holder[]): string {
  const numNodes = new Set(holders.map((holder) => holder.node)).size;
  if (numNodes === 0) return "The pool is ready.";
  return numNodes === 1 ? "One volunteer’s machine is ready to answer." : `${numNodes} volunteers’ machines answer together.`;
}
