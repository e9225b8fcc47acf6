// Ghost text: grey text after the cursor that is not part of the document until it is accepted.

import { StateEffect, StateField } from "@codemirror/state";
import { Decoration, EditorView, WidgetType } from "@codemirror/view";

/** Shows {at, text}, or nothing if null. */
export const setGhost = StateEffect.define();

/** {at, text}, or null. It is removed if the cursor leaves it, or if the document changes in another way than it says. */
export const ghostField = StateField.define({
  create: () => null,
  update(ghost, transaction) {
    for (const effect of transaction.effects) if (effect.is(setGhost)) return effect.value;
    if (ghost === null) return null;
    if (transaction.docChanged) return restAfterTyping(ghost, transaction.changes);
    return transaction.selection && !isCursorAt(transaction.state, ghost.at) ? null : ghost;
  },
  provide: (field) =>
    EditorView.decorations.from(field, (ghost) =>
      ghost?.text
        ? Decoration.set(Decoration.widget({ widget: new GhostWidget(ghost.text), side: 1 }).range(ghost.at))
        : Decoration.none,
    ),
});

/** Inserts all of the ghost text. */
export function acceptGhost(view) {
  return accept(view, (text) => text);
}

/** Inserts the first word of the ghost text, with the white space before it. */
export function acceptWord(view) {
  return accept(view, (text) => /^\s*(?:[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]+)?/u.exec(text)[0]);
}

function accept(view, part) {
  const ghost = view.state.field(ghostField);
  if (!ghost?.text) return false;
  const insert = part(ghost.text);
  view.dispatch({
    changes: { from: ghost.at, insert },
    selection: { anchor: ghost.at + insert.length },
    scrollIntoView: true,
    userEvent: "input.complete",
  });
  return true;
}

/** The ghost text without its beginning, if that is what was typed; else null. */
function restAfterTyping(ghost, changes) {
  let rest = null;
  let count = 0;
  changes.iterChanges((fromA, toA, fromB, toB, inserted) => {
    const typed = inserted.toString();
    count += 1;
    if (fromA === ghost.at && toA === ghost.at && ghost.text.startsWith(typed)) {
      rest = { at: toB, text: ghost.text.slice(typed.length) };
    }
  });
  return count === 1 ? rest : null;
}

export function isCursorAt(state, position) {
  return state.selection.main.empty && state.selection.main.head === position;
}

class GhostWidget extends WidgetType {
  constructor(text) {
    super();
    this.text = text;
  }

  eq(other) {
    return other.text === this.text;
  }

  toDOM() {
    const span = document.createElement("span");
    span.className = "ghost";
    span.textContent = this.text;
    return span;
  }
}
