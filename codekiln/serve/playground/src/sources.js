// Where the text that was written comes from: its parts that are verbatim in the training documents, with their sources.

import { tokenCount } from "./status.js";

export class Sources {
  /** `section` is the section of the page. */
  constructor(section) {
    this.section = section;
    this.summary = section.querySelector(".summary");
    this.code = section.querySelector("code");
    this.list = section.querySelector("ol");
  }

  hide() {
    this.section.hidden = true;
  }

  /**
   * Shows where completions come from: [{text, provenance, withheld}], as the server sends them with their last events.
   *
   * Nothing is shown if the server has no index of the training documents.
   */
  show(completions) {
    const known = completions.filter(({ text, provenance }) => text && provenance);
    const reasons = [...new Set(completions.map(({ withheld }) => withheld).filter(Boolean))];
    this.section.hidden = known.length === 0 && reasons.length === 0;
    this.code.replaceChildren();
    this.list.replaceChildren();
    known.forEach(({ text, provenance }, k) => this.#add(text, provenance, k > 0));
    this.code.hidden = this.list.hidden = this.list.children.length === 0;
    this.summary.textContent = [...reasons.map((reason) => `The text ended early: ${reason}.`), this.#count(known)].join(" ");
  }

  #add(text, provenance, isNext) {
    const characters = [...text]; // the server counts code points
    let at = 0;
    if (isNext) this.code.append("\n");
    for (const part of provenance) {
      const mark = document.createElement("mark");
      mark.textContent = characters.slice(part.start, part.stop).join("");
      mark.dataset.number = this.list.children.length + 1;
      this.code.append(characters.slice(at, part.start).join(""), mark);
      this.list.append(sourceItem(part));
      at = part.stop;
    }
    this.code.append(characters.slice(at).join(""));
  }

  #count(known) {
    const n = this.list.children.length;
    if (known.length === 0) return "";
    if (n === 0) return "No part of this text, of 16 tokens or more, is verbatim in the training documents.";
    return `${n} ${n === 1 ? "part" : "parts"} of this text ${n === 1 ? "is" : "are"} verbatim in the training documents:`;
  }
}

/** A part of a text: its length, its number of places, and the first documents that have it. */
function sourceItem(part) {
  const item = document.createElement("li");
  const places = part.count === 1 ? "1 place" : `${part.count.toLocaleString("en")} places`;
  const before = part.n_prompt_tokens ? `, after ${part.n_prompt_tokens} of the prompt` : "";
  const licenses = Object.entries(part.licenses).map(([license, n]) => `${license}: ${n}`);
  item.append(`${tokenCount(part.n_tokens)}${before} in ${places} (${licenses.join(", ")})`);
  const documents = document.createElement("ul");
  for (const { repository, path, license } of part.sources) {
    const row = document.createElement("li");
    row.textContent = `${repository}/${path} · ${license}`;
    documents.append(row);
  }
  item.append(documents);
  return item;
}
