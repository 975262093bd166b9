import type { AuditEntry, Overview } from "../overview";
import { seenAtS } from "../state";
import { agoOf } from "../words";
import { Ago } from "./Mark";
import { Section } from "./Section";
import { type Column, Table } from "./Table";

interface Line extends AuditEntry {
  key: string;
}

const COLUMNS: Column<Line>[] = [
  { name: "When", cell: (line) => <Ago text={agoOf(line.atS, seenAtS.value)} timeS={line.atS} /> },
  { name: "Who", cell: (line) => <bdi>{line.who || "–"}</bdi> },
  { name: "What", cell: (line) => <bdi>{line.what}</bdi> },
];

export function Audit({ overview }: { overview: Overview }) {
  const lines = overview.audit.map((entry, index) => ({ ...entry, key: `${entry.atS}/${index}` }));
  return (
    <Section id="audit" title="What was done" hint="Everything that operators did, newest first. Nobody can change this list from here.">
      <Table label="What was done" testId="audit" rows={lines} keyOf={(line) => line.key} empty="Nothing yet." columns={COLUMNS} />
    </Section>
  );
}
