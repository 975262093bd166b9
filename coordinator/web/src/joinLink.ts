// Links that bring a computer or a person to a pool, as protocol/join_link.py writes them:
//     decentllm://pool.example.org:8443/join?pin=SHA256HEX&invite=TOKEN     for the app
//     https://pool.example.org:8443/#invite=TOKEN                          for the browser

export const MAX_LINK_CHARACTERS = 600;

/** Only what such a link can consist of, so that it may stand in an address or, quoted, in a command line. */
const APP_LINK = /^decentllm:\/\/[\p{L}\p{N}_.:%[\]-]+\/join(?:\?[\w.~%=&+*-]*)?$/u;
const TOKEN = /^[A-Za-z0-9_-]{8,128}$/;
const IN_LINK = /[#?&](?:invite|token)=([^&#]*)/;

export function checkedJoinLink(value: unknown): string | null {
  return typeof value === "string" && value.length <= MAX_LINK_CHARACTERS && APP_LINK.test(value) ? value : null;
}

/** What to type on a computer without a desktop. The quotes are for the ampersands in the link. */
export function nodeCommand(joinLink: string): string {
  return `decentllm node run --join '${joinLink}'`;
}

export function isToken(text: string): boolean {
  return TOKEN.test(text);
}

export type Pasted = { token: string } | { problem: string };

/** The token in what a person pasted: a link of this pool (at `host`) in either form, or the token alone. */
export function readPasted(text: string, host: string): Pasted {
  const pasted = text.trim();
  if (pasted === "") return { problem: "Paste the invitation link here first." };
  if (isToken(pasted)) return { token: pasted };
  if (pasted.length > MAX_LINK_CHARACTERS) return { problem: "This is too long to be an invitation link." };
  const given = IN_LINK.exec(pasted)?.[1];
  if (given === undefined) {
    return { problem: "There is no invitation in this. The link ends in #invite= and a long row of letters." };
  }
  if (!isToken(given)) return { problem: "The invitation in this link is damaged. Copy the whole link again." };
  const other = /^[a-z]+:\/\/([^/?#]+)/i.exec(pasted)?.[1]?.toLowerCase();
  // Its token belongs to that pool: this one must not see it.
  if (other !== undefined && other !== host.toLowerCase()) {
    return { problem: `This link is for the pool at ${other}. Open it in the address bar instead.` };
  }
  return { token: given };
}
