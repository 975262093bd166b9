import { plural } from "../../format";
import type { Overview } from "../overview";
import { modelSummary } from "./Models";

/** The pool at a glance. */
export function Cards({ overview }: { overview: Overview }) {
  const live = overview.nodes.filter((node) => node.isConnected && !node.isBlocked);
  const numServing = live.filter((node) => node.state === "serving" && !node.isDraining).length;
  const numDraining = live.filter((node) => node.isDraining).length;
  const numReady = overview.models.filter((model) => model.state === "ready").length;
  const numSessions = live.reduce((most, node) => Math.max(most, node.numSessions), 0);
  return (
    <dl class="cards" data-testid="cards">
      <Card name="Nodes" figure={`${live.length}`} note={numDraining > 0 ? `${numServing} serving, ${numDraining} draining` : `${numServing} serving`} />
      <Card name="Models ready" figure={`${numReady}`} note={modelSummary(overview.models)} />
      <Card name="Sessions" figure={`${numSessions}`} note="on the busiest node" />
      <Card name="Waiting" figure={`${overview.numWaiting}`} note={overview.numWaiting === 0 ? "nobody has to wait" : `${plural(overview.numWaiting, "request")} in the queue`} />
    </dl>
  );
}

function Card({ name, figure, note }: { name: string; figure: string; note: string }) {
  return <div class="card"><dt>{name}</dt><dd class="figure">{figure}</dd><dd class="note">{note}</dd></div>;
}
