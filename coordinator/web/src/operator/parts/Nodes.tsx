import { LayerStrip } from "../../components/LayerStrip";
import { formatBytes, formatRate } from "../../format";
import { describeLayers, parseLayers } from "../../layers";
import { drainNode, removeNode, unblockNode } from "../actions";
import type { Device, Node, Overview } from "../overview";
import { press, seenAtS, underway } from "../state";
import { agoOf, lateSentence, nodeMark, nodeTitle, removalConsequence, troublesOf } from "../words";
import { Ago, StateMark } from "./Mark";
import { Section, useQuestion } from "./Section";
import { type Column, Table } from "./Table";

const SECTION = "nodes";

export function Nodes({ overview }: { overview: Overview }) {
  const [question, ask] = useQuestion(SECTION);
  const live = overview.nodes.filter((node) => node.isConnected && !node.isBlocked);
  const away = overview.nodes.filter((node) => !node.isConnected || node.isBlocked);
  const late = lateSentence(overview.late);
  const askRemoval = (node: Node): void => ask({
    title: `Remove “${nodeTitle(node)}”?`,
    consequence: removalConsequence(node),
    verb: "Remove the node",
    name: `remove ${node.id}`,
    done: `“${nodeTitle(node)}” is removed and blocked.`,
    work: () => removeNode(node.id),
  });
  const actions: Column<Node> = { name: "Actions", isActions: true, cell: (node) => <Actions node={node} askRemoval={askRemoval} /> };
  return (
    <Section id={SECTION} title="Nodes" hint="Computers that are connected now. One that dies is gone from here within five seconds.">
      <Table label="Connected nodes" testId="nodes" rows={live} keyOf={(node) => node.id} empty="No node is connected. Give somebody a join link."
        columns={[NAME, STATE, DEVICES, layersColumn(overview), SPEED, ANSWERS, actions]} />
      {late !== "" && <p class="quiet" data-testid="late">{late}</p>}
      {away.length > 0 && (
        <details class="more" data-testid="away">
          <summary>Not connected or removed ({away.length})</summary>
          <Table label="Nodes that are not connected" testId="away-nodes" rows={away} keyOf={(node) => node.id} empty=""
            columns={[NAME, STATE, FIRST_SEEN, LAST_SEEN, actions]} />
        </details>
      )}
      {question}
    </Section>
  );
}

const NAME: Column<Node> = {
  name: "Name", isHead: true,
  cell: (node) => <><bdi>{nodeTitle(node)}</bdi><small class="id" title={node.id}>{node.id.slice(0, 8)}</small></>,
};
const STATE: Column<Node> = { name: "State", cell: (node) => <><StateMark mark={nodeMark(node)} /><Reasons node={node} /></> };
const DEVICES: Column<Node> = {
  name: "Devices",
  cell: (node) => node.devices.length === 0 ? "none" : <ul class="devices">{node.devices.map((device, index) => <li key={index}><bdi>{device.name || "unnamed"}</bdi></li>)}</ul>,
};
const SPEED: Column<Node> = {
  name: "Speed", isNumber: true, cell: (node) => node.tokensPerSecond ? formatRate(node.tokensPerSecond) : "–",
};
const ANSWERS: Column<Node> = { name: "Sessions", isNumber: true, cell: (node) => node.numSessions };
const LAST_SEEN: Column<Node> = {
  name: "Last seen", cell: (node) => <Ago text={agoOf(node.lastSeenS, seenAtS.value)} timeS={node.lastSeenS} />,
};
const FIRST_SEEN: Column<Node> = {
  name: "First seen", cell: (node) => <Ago text={agoOf(node.firstSeenS, seenAtS.value)} timeS={node.firstSeenS} />,
};

function Reasons({ node }: { node: Node }) {
  if (!node.isConnected) return null;
  const failed = node.devices.filter((device) => device.state === "failed" && device.reason !== "");
  const troubles = troublesOf(node.troubles);
  return (
    <>
      {failed.map((device, index) => <small key={index} class="reason"><bdi>{device.reason}</bdi></small>)}
      {troubles !== "" && <small class="reason" data-testid="troubles">Since the start: {troubles}.</small>}
    </>
  );
}

function layersColumn(overview: Overview): Column<Node> {
  const depths = new Map(overview.models.map((model) => [model.id, model.numLayers]));
  return {
    name: "Layers",
    cell: (node) => {
      const holding = node.devices.filter((device) => device.layers !== null);
      if (holding.length === 0) return <span class="quiet">none</span>;
      return <div class="held">{holding.map((device, index) => <Held key={index} device={device} tone={index} numLayers={depths.get(device.model ?? "") ?? 0} />)}</div>;
    },
  };
}

function Held({ device, numLayers, tone }: { device: Device; numLayers: number; tone: number }) {
  const text = device.layers ?? "";
  const range = parseLayers(text);
  const { name, state, doneBytes, totalBytes, lane, reason } = device;
  return (
    <div class={`held-part held-tone-${tone % 4}`}>
      {range !== null && <LayerStrip holders={[{ ...range, node: name, device: name, state, doneBytes, totalBytes, lane, reason }]} numLayers={numLayers} />}
      <small>
        {describeLayers(text)}{numLayers > 0 && ` of ${numLayers}`}{device.model !== null && <>, <bdi>{device.model}</bdi></>}
        {totalBytes > 0 && doneBytes < totalBytes && <> · {formatBytes(doneBytes)} of {formatBytes(totalBytes)}</>}
      </small>
    </div>
  );
}

function Actions({ node, askRemoval }: { node: Node; askRemoval: (node: Node) => void }) {
  const title = nodeTitle(node);
  const drain = `drain ${node.id}`;
  const unblock = `unblock ${node.id}`;
  if (node.isBlocked) {
    return (
      <button type="button" class="button" aria-disabled={underway.value.has(unblock)} aria-label={`Unblock ${title}`}
        onClick={() => press(unblock, () => unblockNode(node.id), `“${title}” may join again.`)}>
        Unblock
      </button>
    );
  }
  const on = !node.isDraining;
  const done = on ? `“${title}” finishes its answers and takes no new ones.` : `“${title}” takes new answers again.`;
  return (
    <>
      {node.isConnected && (
        <button type="button" class="button" aria-disabled={underway.value.has(drain)} aria-label={`${on ? "Drain" : "Undrain"} ${title}`}
          title={on ? "Let it finish its answers and take no new ones" : "Let it take new answers again"}
          onClick={() => press(drain, () => drainNode(node.id, on), done)}>
          {on ? "Drain" : "Undrain"}
        </button>
      )}
      <button type="button" class="button is-quiet-danger" aria-haspopup="dialog" aria-label={`Remove ${title}`} onClick={() => askRemoval(node)}>Remove</button>
    </>
  );
}
