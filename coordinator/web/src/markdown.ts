// A block of Markdown as a harmless piece of document. Three walls: the parser shows raw HTML as text, DOMPurify lets
// through a short list of elements and attributes, and the page's content security policy forbids the rest.

import DOMPurify, { type Config } from "dompurify";
import MarkdownIt from "markdown-it";

import { highlight } from "./highlight";

const markdown = new MarkdownIt({ html: false, linkify: true, maxNesting: 20 });
// "setup.py" is a file, not a site: only whole addresses become links.
markdown.linkify.set({ fuzzyLink: false, fuzzyEmail: false, fuzzyIP: false });
// A definition may come blocks after its use; shown as text it is at least readable, and each block stands alone.
markdown.block.ruler.disable("reference");

const LINK_PROTOCOLS = new Set(["http:", "https:", "mailto:"]);

/** Overrides of the reading direction and characters without width, with which a link's text can lie about itself. */
const INVISIBLE = /[\u200B-\u200F\u202A-\u202E\u2060-\u2069\uFEFF]/g;

/** The parsed target of a link that the page will offer, or null. */
export function safeTarget(href: string): URL | null {
  let target: URL;
  try {
    target = new URL(href);
  } catch {
    return null; // relative addresses point into this page's own origin: nothing there is meant by a model
  }
  return LINK_PROTOCOLS.has(target.protocol) ? target : null;
}

markdown.validateLink = (href) => safeTarget(href) !== null;

const rules = markdown.renderer.rules;
const escape = markdown.utils.escapeHtml;

rules["image"] = (tokens, index) => {
  // Never fetched: an image's address can carry a conversation's text to whoever serves the image (CVE-2025-32711).
  const token = tokens[index];
  const label = token?.content.trim() || "image";
  const source = String(token?.attrGet("src") ?? "");
  return `<a href="${escape(source)}">${escape(label)}</a>`;
};

rules["fence"] = (tokens, index, _options, environment) => {
  const token = tokens[index];
  const language = (token?.info.trim().split(/[\s{:,]/, 1)[0] ?? "").slice(0, 24);
  return codeBlock(token?.content ?? "", language, environment?.["isOpen"] === true);
};

rules["code_block"] = (tokens, index) => codeBlock(tokens[index]?.content ?? "", "", false);

// Alignment comes as a style attribute, which the sanitiser does not let through.
for (const cell of ["th_open", "td_open"]) {
  rules[cell] = (tokens, index, options, _environment, renderer) => {
    const token = tokens[index];
    if (token === undefined) return "";
    const alignment = /text-align:(left|center|right)/.exec(String(token.attrGet("style") ?? ""));
    token.attrs = alignment === null ? [] : [["class", `align-${alignment[1]}`]];
    return renderer.renderToken(tokens, index, options);
  };
}
rules["table_open"] = () => '<div class="table" tabindex="0"><table>\n';
rules["table_close"] = () => "</table></div>\n";

function codeBlock(code: string, language: string, isOpen: boolean): string {
  const shown = highlight(code, language.toLowerCase(), isOpen) ?? escape(code);
  return (
    `<div class="code"><div class="code-head"><span class="code-language">${escape(language || "text")}</span>` +
    `<button type="button" class="code-copy">Copy</button></div>` +
    `<pre tabindex="0"><code>${shown}</code></pre></div>`
  );
}

const SANITISER: Config = {
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "button", "code", "del", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol",
    "p", "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["class", "href", "start", "tabindex", "title", "type"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  // A fragment goes into the document as it is. As text it would be parsed a second time, and the second parse may
  // see other elements than the sanitiser did (mutation XSS).
  RETURN_DOM_FRAGMENT: true,
};

/** One block of the text as a fragment of document. */
export function renderMarkdown(raw: string, isOpen: boolean): DocumentFragment {
  const source = raw.replaceAll("\0", "\uFFFD").toWellFormed();
  const html = markdown.render(isOpen ? closeMarks(source) : source, { isOpen });
  const fragment = DOMPurify.sanitize(html, SANITISER) as unknown as DocumentFragment;
  for (const link of fragment.querySelectorAll("a")) hardenLink(link);
  return fragment;
}

function hardenLink(link: HTMLAnchorElement): void {
  const target = safeTarget(link.getAttribute("href") ?? "");
  if (target === null) {
    link.replaceWith(...link.childNodes);
    return;
  }
  link.rel = "noopener noreferrer";
  link.target = "_blank";
  link.title = target.href.slice(0, 300);
  for (const text of textsOf(link)) text.data = text.data.replace(INVISIBLE, "");
  const place = target.protocol === "mailto:" ? decodeMail(target.pathname) : target.host;
  if (!namesPlace(link.textContent ?? "", place)) {
    const host = document.createElement("span");
    host.className = "link-host";
    host.textContent = ` (${place.slice(0, 80)})`;
    link.after(host);
  }
}

function decodeMail(path: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}

/** Whether a link's text is its own address; any other text may lie, so the host is shown behind it. */
function namesPlace(text: string, place: string): boolean {
  const bare = text.trim().replace(/^(?:https?:\/\/|mailto:)/i, "");
  return bare === place || bare.startsWith(`${place}/`) || bare.startsWith(`${place}?`) || bare.startsWith(`${place}#`);
}

function textsOf(node: Node): Text[] {
  const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  const texts: Text[] = [];
  for (let text = walker.nextNode(); text !== null; text = walker.nextNode()) texts.push(text as Text);
  return texts;
}

/**
 * Marks that a growing text has opened but not yet closed would show as stars and brackets for a moment, and then
 * jump. This guesses their end; the finished text is shown as it was written.
 */
export function closeMarks(raw: string): string {
  if (/^ {0,3}(?:`{3}|~{3})/m.test(raw)) return raw;
  const start = raw.lastIndexOf("\n\n") + 1;
  const tail = raw.slice(start);
  const withoutCode = tail.replace(/`[^`\n]*`/g, "");
  if (withoutCode.includes("`")) return /`$/.test(raw) ? raw.slice(0, -1) : `${raw}\``;
  const withoutLink = raw.slice(0, start) + tail.replace(/!?\[([^\][\n]{0,300})\](?:\([^()\s]{0,2000})?$/, "$1");
  const trimmed = withoutLink.replace(/(^|[\s(])\*{1,3}$/, "$1").trimEnd();
  const isStrongOpen = (withoutCode.match(/\*\*(?!\s*$)/g) ?? []).length % 2 === 1;
  return isStrongOpen ? `${trimmed.replace(/\*$/, "")}**` : trimmed;
}
