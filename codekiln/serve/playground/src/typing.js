// Completes while the user types: after a pause, the text at the cursor is streamed as ghost text.

import { ViewPlugin } from "@codemirror/view";
import { ghostField, setGhost } from "./ghost.js";
import { withoutHoles } from "./holes.js";
import { requestBody } from "./settings.js";

/**
 * The plugin. `settings` returns the current settings, `isReady` whether requests can be sent; `status` is the
 * status line, `sources` shows where a text comes from, and `stream` is `streamCompletions`.
 */
export function completeWhileTyping({ settings, isReady, status, sources, stream }) {
  return ViewPlugin.define((view) => {
    let timer = null;
    let running = null; // the AbortController of the request in progress

    function cancel() {
      clearTimeout(timer);
      running?.abort();
      running = null;
    }

    function schedule() {
      clearTimeout(timer);
      const { isWhileTyping, debounceMs } = settings();
      if (isWhileTyping && isReady()) timer = setTimeout(complete, debounceMs);
    }

    async function complete() {
      cancel();
      const { state } = view;
      const at = state.selection.main.head;
      if (!state.selection.main.empty || view.composing) return;
      const prompt = withoutHoles(state.sliceDoc(0, at));
      const suffix = withoutHoles(state.sliceDoc(at));
      if (!prompt && !suffix) return;
      const current = settings();
      const mine = (running = new AbortController());
      view.dispatch({ effects: setGhost.of({ at, text: "" }) });
      const job = status.start("Completing…");
      const written = { text: "" };
      sources.hide();
      try {
        const measured = await stream(requestBody(current, prompt, suffix), {
          apiKey: current.apiKey,
          signal: mine.signal,
          onChoice: ({ text, provenance, withheld }) => {
            Object.assign(written, { text: written.text + text, provenance, withheld });
            const ghost = view.state.field(ghostField);
            if (text && running === mine) view.dispatch({ effects: setGhost.of({ ...ghost, text: ghost.text + text }) });
          },
        });
        job.done(measured);
        if (running === mine) sources.show([written]);
      } catch (error) {
        if (running === mine) view.dispatch({ effects: setGhost.of(null) });
        job.fail(error);
      }
      if (running === mine) running = null;
    }

    return {
      complete,
      cancel,
      update(update) {
        const ghost = update.state.field(ghostField);
        if (ghost === null && update.startState.field(ghostField) !== null) cancel();
        if (update.docChanged) {
          const isTyped = update.transactions.some((t) => t.isUserEvent("input") || t.isUserEvent("delete"));
          if (ghost === null) cancel();
          if (isTyped && !running && !ghost?.text) schedule();
        } else if (update.selectionSet) {
          clearTimeout(timer);
        }
      },
      destroy: cancel,
    };
  });
}
