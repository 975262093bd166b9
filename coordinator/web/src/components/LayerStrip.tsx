import { describeHolder, type Holder, rowsOf } from "../layers";

interface LayerStripProps {
  holders: Holder[];
  numLayers: number;
}

/** A pool has hundreds of lanes before anybody tells one bar from another. */
const SHOWN_ROWS = 24;

/** Who holds which layers, as bars over the model's depth. The list beside it says the same in words. */
export function LayerStrip({ holders, numLayers }: LayerStripProps) {
  if (numLayers === 0) return null;
  const rows = rowsOf(holders).slice(0, SHOWN_ROWS);
  const tones = new Map(holders.map((holder, index) => [holder, index % 4]));
  return (
    <div class="layer-strip" aria-hidden="true">
      {(rows.length === 0 ? [[]] : rows).map((row, index) => (
        <div class="layer-row" key={index}>
          {row.map((holder) => (
            <Bar key={`${holder.node}/${holder.device}/${holder.first}`} holder={holder} numLayers={numLayers}
              tone={tones.get(holder) ?? 0} />
          ))}
        </div>
      ))}
    </div>
  );
}

function Bar({ holder, numLayers, tone }: { holder: Holder; numLayers: number; tone: number }) {
  const left = (100 * holder.first) / numLayers;
  const width = (100 * (Math.min(holder.last, numLayers - 1) - holder.first + 1)) / numLayers;
  const isServing = holder.state === "ready" || holder.state === "serving";
  return (
    <span class={`layer-bar tone-${tone} ${isServing ? "" : "is-loading"}`} style={{ left: `${left}%`, width: `${width}%` }}
      title={describeHolder(holder)} />
  );
}
