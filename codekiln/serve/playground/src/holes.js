// Holes: marks in the document that are filled from left to right.

import { isolateHistory } from "@codemirror/commands";
import { StateEffect, StateField } from "@codemirror/state";
import { Decoration, EditorView, WidgetType } from "@codemirror/view";
import { requestBody } from "./settings.js";

// Unicode's placeholder for an object in text. Source code has none, and a hole in it is edited, moved and undone as any
// other character.
export const HOLE = "\ufffc";

const setFills = StateEffect.define(); // the texts of the first holes while they are filled
const setFilled = StateEffect.define(); // the ranges that were filled

export function withoutHoles(text) {
  return text.replaceAll(HOLE, "");
}

const fillsField = StateField.define({
  create: () => [],
  update(fills, transaction) {
    for (const effect of transaction.effects) if (effect.is(setFills)) return effect.value;
    return transaction.docChanged ? [] : fills;
  },
});

const holesField = StateField.define({
  create: (state) => holeDecorations(state),
  update: (_, transaction) => holeDecorations(transaction.state),
  provide: (field) => [
    EditorView.decorations.from(field),
    EditorView.atomicRanges.of((view) => view.state.field(field)),
  ],
});

const filledField = StateField.define({
  create: () => Decoration.none,
  update(ranges, transaction) {
    for (const effect of transaction.effects) if (effect.is(setFilled)) return Decoration.set(effect.value);
    return ranges.map(transaction.changes);
  },
  provide: (field) => EditorView.decorations.from(field),
});

/** Puts a hole at the cursor, or in place of the selection. */
export function insertHole(view) {
  view.dispatch(view.state.replaceSelection(HOLE), { scrollIntoView: true, userEvent: "hole.insert" });
  return true;
}

/** Removes the highlight of filled holes. Returns whether there was one. */
export function clearFilled(view) {
  const isAny = view.state.field(filledField).size > 0;
  if (isAny) view.dispatch({ effects: setFilled.of([]) });
  return isAny;
}

/** Fills all holes when `fill` is called. A change of the document stops it, and so does `stop`. */
export class HoleFiller {
  #running = null;

  constructor({ settings, status, sources, stream }) {
    Object.assign(this, { settings, status, sources, stream });
  }

  get extension() {
    return [
      fillsField,
      holesField,
      filledField,
      EditorView.updateListener.of((update) => update.docChanged && this.stop("the text was changed")),
      EditorView.clipboardOutputFilter.of(withoutHoles),
    ];
  }

  /** Stops filling. Returns whether holes were being filled. */
  stop(reason) {
    if (this.#running === null) return false;
    this.#running.abort();
    this.#running = null;
    this.status.note(`No hole was filled: ${reason}.`);
    return true;
  }

  /** Fills the holes, each with the text of the earlier ones before it. The document changes once, at the end. */
  async fill(view) {
    const parts = view.state.doc.toString().split(HOLE);
    if (parts.length === 1) {
      this.status.note("There is no hole. Put one at the cursor first.");
      return;
    }
    this.#running?.abort();
    const mine = (this.#running = new AbortController());
    const job = this.status.start("");
    const fills = [];
    const written = [];
    this.sources.hide();
    const sum = { firstMs: null, totalMs: 0, tokens: 0 };
    try {
      for (let k = 0; k < parts.length - 1; k++) {
        job.progress(`Filling hole ${k + 1} of ${parts.length - 1}…`);
        const prompt = parts.slice(0, k + 1).reduce((text, part, i) => text + fills[i - 1] + part);
        const measured = await this.#fillOne(view, mine, fills, written, prompt, parts.slice(k + 1).join(""));
        sum.firstMs ??= measured.firstMs;
        sum.totalMs += measured.totalMs;
        sum.tokens += measured.tokens;
      }
      if (this.#running !== mine) return;
      this.#running = null; // the change below must not stop it
      view.dispatch(replaceHoles(parts, fills));
      job.done(sum);
      this.sources.show(written);
    } catch (error) {
      if (this.#running === mine) {
        this.#running = null;
        view.dispatch({ effects: setFills.of([]) });
      }
      job.fail(error);
    }
  }

  async #fillOne(view, controller, fills, written, prompt, suffix) {
    const settings = this.settings();
    let text = "";
    let last = {};
    const measured = await this.stream(requestBody(settings, prompt, suffix), {
      apiKey: settings.apiKey,
      signal: controller.signal,
      onChoice: (choice) => {
        text += choice.text;
        last = choice;
        if (this.#running === controller) view.dispatch({ effects: setFills.of([...fills, text]) });
      },
    });
    fills.push(text);
    written.push({ text, provenance: last.provenance, withheld: last.withheld });
    return measured;
  }
}

function replaceHoles(parts, fills) {
  const changes = [];
  const filled = [];
  let before = 0; // positions in the old document and in the new one
  let after = 0;
  fills.forEach((text, k) => {
    before += parts[k].length;
    after += parts[k].length;
    changes.push({ from: before, to: before + 1, insert: text });
    if (text) filled.push(Decoration.mark({ class: "filled" }).range(after, after + text.length));
    before += 1;
    after += text.length;
  });
  return {
    changes,
    selection: { anchor: after },
    effects: [setFills.of([]), setFilled.of(filled)],
    annotations: isolateHistory.of("full"), // one undo brings all holes back
    scrollIntoView: true,
    userEvent: "hole.fill",
  };
}

function holeDecorations(state) {
  const text = state.doc.toString();
  const fills = state.field(fillsField);
  const ranges = [];
  for (let at = text.indexOf(HOLE); at >= 0; at = text.indexOf(HOLE, at + 1)) {
    const widget = new HoleWidget(ranges.length + 1, fills[ranges.length] ?? "");
    ranges.push(Decoration.replace({ widget }).range(at, at + 1));
  }
  return Decoration.set(ranges);
}

class HoleWidget extends WidgetType {
  constructor(number, text) {
    super();
    this.number = number;
    this.text = text;
  }

  eq(other) {
    return other.number === this.number && other.text === this.text;
  }

  toDOM() {
    const span = document.createElement("span");
    span.className = "hole";
    span.textContent = this.text || `hole ${this.number}`;
    return span;
  }
}
