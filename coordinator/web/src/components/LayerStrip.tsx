import { describeLayers, type Holder, rowsOf } from "../layers";

interface LayerStripProps {
  holders: Holder[];
  numLayers: number;
}

/** Who holds which layers, as bars over the model's depth. The list beside it says the same in words. */
export function LayerStrip({ holders, numLayers }: LayerStripProps) {
  if (numLayers === 0) return null;
  const rows = rowsOf(holders);
  return (
    <div class="layer-strip" aria-hidden="true">
      {(rows.length === 0 ? [[]] : rows).map((row, index) => (
        <div class="layer-row" key={index}>
          {row.map((holder) => (
            <Bar key={`${holder.node}/${holder.device}/${holder.first}`} holder={holder} numLayers={numLayers}
              tone={holders.indexOf(holder) % 4} />
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
      title={`${holder.node}: ${describeLayers(`${holder.first}-${holder.last}`)}`} />
  );
}
