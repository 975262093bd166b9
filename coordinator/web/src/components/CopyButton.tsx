import { useState } from "preact/hooks";

import { copyText } from "../clipboard";
import { CheckIcon, CopyIcon } from "./Icons";

const SHOWN_MS = 1_500;

export function CopyButton({ text }: { text: string }) {
  const [isCopied, setIsCopied] = useState(false);
  const copy = async (): Promise<void> => {
    if (!(await copyText(text))) return;
    setIsCopied(true);
    setTimeout(() => setIsCopied(false), SHOWN_MS);
  };
  const label = isCopied ? "Copied" : "Copy";
  return (
    <button type="button" class="small-button" onClick={() => void copy()} aria-label={label} title={label}>
      {isCopied ? <CheckIcon /> : <CopyIcon />}
    </button>
  );
}
