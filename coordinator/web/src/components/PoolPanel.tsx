import type { Pool, PoolModel } from "../api";
import { formatBytes, plural } from "../format";
import { describeLayers, describeModel, type Holder, holdersOf } from "../layers";
import { model, pool, poolError } from "../pool";
import { isContributeOpen } from "../view";
import { PeopleIcon } from "./Icons";
import { LayerStrip } from "./LayerStrip";
import { Popover } from "./Popover";

export function PoolPanel() {
  const seen = pool.value;
  if (seen === null) return null;
  const trigger = (
    <>
      <PeopleIcon />
      <span>{seen.nodes.length}<span class="pool-word">{seen.nodes.length === 1 ? " node" : " nodes"}</span></span>
    </>
  );
  return (
    <Popover label={`The pool: ${plural(seen.nodes.length, "node")}`} trigger={trigger} triggerClass="pool-button" side="right">
      {(close) => (
        <div class="pool-panel">
          <h2><bdi>{seen.name || "The pool"}</bdi></h2>
          {poolError.value !== null && <p class="quiet">{poolError.value}</p>}
          {model.value !== null && <ModelHolders seen={seen} shown={model.value} />}
          <IdleNodes seen={seen} />
          {seen.numWaiting > 0 && <p class="quiet">{plural(seen.numWaiting, "request")} waiting for a place.</p>}
          <button type="button" class="button" onClick={() => { close(); isContributeOpen.value = true; }}>Contribute a computer</button>
        </div>
      )}
    </Popover>
  );
}

function ModelHolders({ seen, shown }: { seen: Pool; shown: PoolModel }) {
  const holders = holdersOf(seen, shown.id);
  return (
    <>
      <p class="quiet">
        <bdi>{shown.id}</bdi>, {plural(shown.numLayers, "layer")}. {describeModel(shown)}
      </p>
      <LayerStrip holders={holders} numLayers={shown.numLayers} />
      <ul class="holder-list">
        {holders.map((holder, index) => (
          <li key={`${holder.node}/${holder.device}/${holder.first}`}>
            <span class={`swatch tone-${index % 4}`} aria-hidden="true" />
            <span class="holder-name"><bdi>{holder.node}</bdi><small><bdi>{holder.device}</bdi></small></span>
            <span class="holder-layers">{describeLayers(`${holder.first}-${holder.last}`)}<small>{progressOf(holder)}</small></span>
          </li>
        ))}
      </ul>
    </>
  );
}

function progressOf({ state, doneBytes, totalBytes }: Holder): string {
  if (totalBytes > 0 && doneBytes < totalBytes) {
    return `${state || "loading"}, ${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`;
  }
  return state;
}

function IdleNodes({ seen }: { seen: Pool }) {
  const idle = seen.nodes.filter((node) => node.devices.every((device) => device.layers === null));
  if (idle.length === 0) return null;
  return (
    <p class="quiet">
      Here without layers: {idle.map((node, index) => <span key={node.name}>{index > 0 && ", "}<bdi>{node.name}</bdi> ({node.state})</span>)}
    </p>
  );
}
