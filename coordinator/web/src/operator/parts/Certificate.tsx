import { CopyField } from "../../components/CopyField";
import type { Overview } from "../overview";
import { groupedPin } from "../words";
import { Section } from "./Section";

export function Certificate({ overview }: { overview: Overview }) {
  return (
    <Section id="certificate" title="Certificate">
      {overview.pin === "" ? (
        <p class="quiet">
          {location.protocol === "https:"
            ? "This pool uses a certificate of a public authority or of a proxy in front of it: there is no fingerprint to compare."
            : "This pool is served without encryption, which is right for this computer only: there is no certificate."}
        </p>
      ) : (
        <>
          <p class="quiet section-hint">
            The pool signs its certificate itself. Join links hold this SHA-256 fingerprint, and nodes trust nothing else. A browser that warns shows it too: compare them.
          </p>
          <CopyField label="Fingerprint" text={groupedPin(overview.pin)} testId="pin" />
        </>
      )}
    </Section>
  );
}
