import { useState } from "preact/hooks";

import { formatBytes, plural } from "../../format";
import { addModel, loadModel, removeModel, unloadModel } from "../actions";
import { checkModel, type ModelForm, type Packing, type SourceKind } from "../forms";
import type { Job, Model, Overview } from "../overview";
import { press, underway } from "../state";
import { modelMark } from "../words";
import { Choices, Field } from "./Field";
import { FormDialog } from "./FormDialog";
import { StateMark } from "./Mark";
import { keepFocus, Section, useQuestion } from "./Section";
import { type Column, Table } from "./Table";

const SECTION = "models";

export function Models({ overview }: { overview: Overview }) {
  const [isAdding, setIsAdding] = useState(false);
  const [question, ask] = useQuestion(SECTION);
  const askRemoval = (model: Model): void => ask({
    title: `Remove “${model.id}”?`,
    consequence: "The pool forgets this model: answers with it end, and its nodes are given other work. The files that it was added from stay where they are.",
    verb: "Remove the model",
    name: `remove ${model.id}`,
    done: `“${model.id}” is removed.`,
    work: () => removeModel(model.id),
  });
  const actions: Column<Model> = { name: "Actions", isActions: true, cell: (model) => <Actions model={model} ask={ask} askRemoval={askRemoval} /> };
  const add = <button type="button" class="button is-primary" data-testid="add-model" aria-haspopup="dialog" onClick={() => setIsAdding(true)}>Add a model</button>;
  return (
    <Section id={SECTION} title="Models" action={add}>
      <Jobs jobs={overview.jobs} />
      <Table label="Models" testId="models" rows={overview.models} keyOf={(model) => model.id} empty="There is no model yet. Add one to begin."
        columns={[NAME, STATE, LAYERS, SIZE, actions]} />
      {question}
      {isAdding && <AddModel onClose={() => { setIsAdding(false); keepFocus(SECTION); }} />}
    </Section>
  );
}

const NAME: Column<Model> = { name: "Name", isHead: true, cell: (model) => <bdi>{model.id}</bdi> };
const STATE: Column<Model> = {
  name: "State",
  cell: (model) => <><StateMark mark={modelMark(model)} />{model.message !== "" && <small class="reason" dir="auto">{model.message}</small>}</>,
};
const LAYERS: Column<Model> = { name: "Layers", isNumber: true, cell: (model) => model.numLayers || "–" };
const SIZE: Column<Model> = { name: "Size", isNumber: true, cell: (model) => (model.sizeBytes === null ? "–" : formatBytes(model.sizeBytes)) };

type Ask = ReturnType<typeof useQuestion>[1];

function Actions({ model, ask, askRemoval }: { model: Model; ask: Ask; askRemoval: (model: Model) => void }) {
  const name = `load ${model.id}`;
  const askUnload = (): void => ask({
    title: `Unload “${model.id}”?`,
    consequence: "Answers with it end, and its nodes become free for other models. It stays in this list and can be loaded again.",
    verb: "Unload the model",
    name: `unload ${model.id}`,
    done: `“${model.id}” is unloaded.`,
    work: () => unloadModel(model.id),
  });
  return (
    <>
      {model.state === "unloaded" ? (
        <button type="button" class="button" aria-disabled={underway.value.has(name)} aria-label={`Load ${model.id}`}
          onClick={() => press(name, () => loadModel(model.id), `“${model.id}” is being given to the nodes.`)}>
          Load
        </button>
      ) : (
        <button type="button" class="button" aria-haspopup="dialog" aria-label={`Unload ${model.id}`} onClick={askUnload}>Unload</button>
      )}
      <button type="button" class="button is-quiet-danger" aria-haspopup="dialog" aria-label={`Remove ${model.id}`} onClick={() => askRemoval(model)}>Remove</button>
    </>
  );
}

/** What is being added or loaded now, and what could not be: a finished job is in the table. */
function Jobs({ jobs }: { jobs: Job[] }) {
  const shown = jobs.filter((job) => job.state !== "done");
  return (
    <ul class="jobs" aria-label="Models that are being added or loaded" data-testid="jobs">
      {shown.map((job) => <li key={job.id} class={`job is-${job.state}`}><JobView job={job} /></li>)}
    </ul>
  );
}

function JobView({ job }: { job: Job }) {
  if (job.state === "failed") {
    return <><p><strong><bdi>{job.spec}</bdi></strong> could not be added or loaded.</p><p class="field-error" role="alert" dir="auto">{job.message || "The coordinator gave no reason."}</p></>;
  }
  const isKnown = job.totalBytes > 0;
  const done = Math.min(job.doneBytes, job.totalBytes);
  return (
    <>
      <p><strong><bdi>{job.spec}</bdi></strong> <span class="quiet">{job.step || "Starting"}{isKnown && `, ${formatBytes(done)} of ${formatBytes(job.totalBytes)}`}</span></p>
      <progress aria-label={`Progress of ${job.spec}`} {...(isKnown ? { value: done, max: job.totalBytes } : {})} />
    </>
  );
}

const KINDS: { value: SourceKind; name: string; label: string; hint: string; placeholder: string }[] = [
  { value: "hub", name: "Model hub", label: "Model", hint: "The coordinator downloads it. Add @revision for a certain version.", placeholder: "Qwen/Qwen2.5-0.5B-Instruct" },
  { value: "folder", name: "Folder", label: "Folder", hint: "On the coordinator’s computer, with safetensors files and config.json.", placeholder: "/srv/models/qwen2.5-0.5b-instruct" },
  { value: "gguf", name: "GGUF file", label: "File", hint: "On the coordinator’s computer. It is converted first, which takes a while.", placeholder: "/srv/models/model-q8_0.gguf" },
];

const PACKINGS: { value: Packing; name: string }[] = [
  { value: "", name: "As they are" },
  { value: "int8", name: "8 bits" },
  { value: "int4", name: "4 bits" },
];
const PACKING_HINT = "Fewer bits let smaller cards take part and make NVIDIA cards answer faster, but processors slower. 4 bits cost some quality.";

function AddModel({ onClose }: { onClose: () => void }) {
  const empty: ModelForm = { kind: "hub", spec: "", packing: "", name: "" };
  return (
    <FormDialog title="Add a model" verb="Add the model" empty={empty} check={checkModel} onClose={onClose}
      done="The model is being added." send={async (source) => { await addModel(source); return null; }}
      fields={(form, change, problems) => {
        const kind = KINDS.find((candidate) => candidate.value === form.kind) ?? KINDS[0]!;
        return (
          <>
            <Choices label="Where it comes from" options={KINDS} value={form.kind} onChange={(kind) => change({ kind })} />
            <Field label={kind.label} value={form.spec} onInput={(spec) => change({ spec })} problem={problems.spec} hint={kind.hint} placeholder={kind.placeholder} />
            <Choices label="Weights" options={PACKINGS} value={form.packing} onChange={(packing) => change({ packing })} hint={PACKING_HINT} />
            <Field label="Name in the pool (optional)" value={form.name} onInput={(name) => change({ name })} problem={problems.name} hint="What people choose in the chat page." />
          </>
        );
      }} />
  );
}

export function modelSummary(models: Model[]): string {
  const numReady = models.filter((model) => model.state === "ready").length;
  return models.length === 0 ? "none added" : `of ${plural(models.length, "model")}${numReady === models.length ? "" : " ready"}`;
}
