import { useState } from "preact/hooks";

import { LayerStrip } from "../../components/LayerStrip";
import { describeForecast, figuresOf, type Forecast } from "../../forecast";
import { formatSeconds, plural } from "../../format";
import { describeLayers, type Holder as StripHolder, parseLayers } from "../../layers";
import { demandOf, type Holder, type ModelPlan, newcomerSentence, type Plan, type PlanRow, rowsOfPlan } from "../plan";
import { plan, planError } from "../planState";
import { partMark } from "../words";
import { StateMark } from "./Mark";
import { Section } from "./Section";
import { type Column, Table } from "./Table";

/** More rows than a browser draws quickly, and than anybody reads. */
const SHOWN_ROWS = 60;

export function PlanSection() {
  const seen = plan.value;
  const hint = "Who holds which layers and why. A lane is a complete row of slices; where slices are cut alike, answers also cross from lane to lane.";
  return (
    <Section id="plan" title="Plan" hint={hint}>
      {planError.value !== null && <p class="quiet" role="status">{planError.value}</p>}
      {seen !== null && <Models seen={seen} />}
      {seen === null && planError.value === null && <p class="quiet empty">Asking for the plan…</p>}
    </Section>
  );
}

function Models({ seen }: { seen: Plan }) {
  return (
    <>
      {seen.models.length === 0 && <p class="quiet empty" data-testid="plan-empty">Nothing is planned: no device has measured a model yet.</p>}
      {seen.models.map((model) => <ModelView key={`${model.name}/${model.variant}`} model={model} seen={seen} />)}
      {seen.idle.length > 0 && <Idle holders={seen.idle} />}
    </>
  );
}

function ModelView({ model, seen }: { model: ModelPlan; seen: Plan }) {
  const rows = rowsOfPlan(model);
  return (
    <section class="plan-model" aria-label={`Plan of ${model.name}`}>
      <h3><bdi>{model.name}</bdi> <small class="quiet">{model.variant}, {plural(model.numLayers, "layer")}, {plural(model.lanes.length, "lane")}</small></h3>
      {model.message !== "" && <p dir="auto">{model.message}</p>}
      {model.forecast !== null && <Figures forecast={model.forecast} seen={seen} />}
      <LayerStrip holders={rows.flatMap(stripHolder)} numLayers={model.numLayers} />
      <p class="quiet" dir="auto">{demandOf(model)} {newcomerSentence(model)}</p>
      <Rows label={`Who holds ${model.name}`} testId="plan-table" rows={rows} columns={[laneColumn(model), LAYERS, NODE, STATE, WHY]} />
    </section>
  );
}

/** What is expected with one answer alone, and at most within the bound. */
function Figures({ forecast, seen }: { forecast: Forecast; seen: Plan }) {
  const bound = `Predicted. The most is what keeps ${formatSeconds(seen.boundTpotS * 1000)} a token and ${formatSeconds(seen.boundTtftS * 1000)} to the first.`;
  return (
    <dl class="figures" title={bound} data-testid="plan-figures">
      {figuresOf(forecast).map(({ name, figure }) => <div key={name}><dt>{name}</dt><dd>{figure}</dd></div>)}
    </dl>
  );
}

function Idle({ holders }: { holders: Holder[] }) {
  return (
    <section class="plan-model" aria-label="Devices without a part">
      <h3>Without a part <small class="quiet">{plural(holders.length, "device")}</small></h3>
      <Rows label="Devices without a part in the plan" testId="plan-idle" rows={holders.map((holder) => ({ lane: null, holder }))} columns={[NODE, STATE, WHY]} />
    </section>
  );
}

function Rows({ label, testId, rows, columns }: { label: string; testId: string; rows: PlanRow[]; columns: Column<PlanRow>[] }) {
  const [isWhole, setIsWhole] = useState(false);
  const shown = isWhole ? rows : rows.slice(0, SHOWN_ROWS);
  return (
    <>
      <Table label={label} testId={testId} rows={shown} keyOf={keyOf} empty="Nobody holds layers of it now." columns={columns} />
      {shown.length < rows.length && <button type="button" class="button" onClick={() => setIsWhole(true)}>Show all {rows.length} devices</button>}
    </>
  );
}

function keyOf({ lane, holder }: PlanRow): string {
  return `${lane}/${holder.nodeId}/${holder.device}/${holder.layers}`;
}

function stripHolder({ lane, holder }: PlanRow): StripHolder[] {
  const range = parseLayers(holder.layers);
  return range === null ? [] : [{ ...range, node: holder.node, device: holder.device, state: holder.part, doneBytes: 0, totalBytes: 0, lane, reason: holder.reason }];
}

function laneColumn(model: ModelPlan): Column<PlanRow> {
  return {
    name: "Lane", isNumber: true,
    cell: ({ lane }) => {
      const forecast = lane === null ? null : model.lanes[lane - 1]?.forecast ?? null;
      return lane === null ? "–" : <span title={forecast === null ? undefined : describeForecast(forecast)}>{lane}</span>;
    },
  };
}

const LAYERS: Column<PlanRow> = { name: "Layers", cell: ({ holder }) => describeLayers(holder.layers) };
const NODE: Column<PlanRow> = {
  name: "Node", isHead: true, cell: ({ holder }) => <><bdi>{holder.node}</bdi><small class="id"><bdi>{holder.device}</bdi></small></>,
};
const STATE: Column<PlanRow> = {
  name: "State",
  cell: ({ holder }) => <><StateMark mark={partMark(holder.part)} />{holder.numRequests > 0 && <small class="reason">{plural(holder.numRequests, "request")}</small>}</>,
};
const WHY: Column<PlanRow> = {
  name: "Why",
  cell: ({ holder }) => (
    <details class="why">
      <summary dir="auto">{holder.reason || "It came with these layers"}</summary>
      <ul>{holder.why.map((sentence) => <li key={sentence} dir="auto">{sentence}</li>)}</ul>
    </details>
  ),
};
