import type { Pool, PoolModel, PoolNode } from "../api";
import { figuresOf } from "../forecast";
import { formatBytes, plural } from "../format";
import { describeLayers, describeModel, type Holder, holdersOf } from "../layers";
import { model, pool, poolError } from "../pool";
import { isContributeOpen } from "../view";
import { PeopleIcon } from "./Icons";
import { LayerStrip } from "./LayerStrip";
import { Popover } from "./Popover";

const SHOWN_HOLDERS = 40;

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
      <Expected shown={shown} />
      <LayerStrip holders={holders} numLayers={shown.numLayers} />
      <ul class="holder-list">
        {holders.slice(0, SHOWN_HOLDERS).map((holder, index) => (
          <li key={`${holder.node}/${holder.device}/${holder.first}`}>
            <span class={`swatch tone-${index % 4}`} aria-hidden="true" />
            <span class="holder-name"><bdi>{holder.node}</bdi><small><bdi>{holder.device}</bdi></small></span>
            <span class="holder-layers">{describeLayers(`${holder.first}-${holder.last}`)}<small>{placeOf(holder)}</small></span>
            {holder.reason !== "" && <small class="holder-why" dir="auto">{holder.reason}</small>}
          </li>
        ))}
      </ul>
      {holders.length > SHOWN_HOLDERS && <p class="quiet">And {plural(holders.length - SHOWN_HOLDERS, "more device")}.</p>}
    </>
  );
}

/** What the plan predicts; nothing while no lane is complete. */
function Expected({ shown }: { shown: PoolModel }) {
  if (shown.forecast === null) return null;
  return (
    <dl class="figures" data-testid="pool-figures" title={`Predicted for ${plural(shown.numLanes, "lane")} from measured speeds and links`}>
      {figuresOf(shown.forecast).map(({ name, figure }) => <div key={name}><dt>{name}</dt><dd>{figure}</dd></div>)}
    </dl>
  );
}

function placeOf(holder: Holder): string {
  const progress = progressOf(holder);
  return holder.lane === null ? progress : `lane ${holder.lane}${progress === "" ? "" : `, ${progress}`}`;
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
    <>
      <p class="quiet">Here without layers:</p>
      <ul class="holder-list">
        {idle.slice(0, SHOWN_HOLDERS).map((node, index) => (
          <li key={index}>
            <span class="holder-name"><bdi>{node.name}</bdi><small>{node.state}</small></span>
            {reasonOf(node) !== "" && <small class="holder-why" dir="auto">{reasonOf(node)}</small>}
          </li>
        ))}
      </ul>
    </>
  );
}

function reasonOf(node: PoolNode): string {
  return node.devices.map((device) => device.reason).find((reason) => reason !== "") ?? "";
}
