// The playground: an editor with completions, holes and candidates.

import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import { bracketMatching, indentOnInput, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { Compartment, EditorState, Prec } from "@codemirror/state";
import { drawSelection, EditorView, highlightActiveLine, keymap, lineNumbers } from "@codemirror/view";
import { classHighlighter } from "@lezer/highlight";
import { modelNames, streamCompletions } from "./api.js";
import { CandidateList } from "./candidates.js";
import { Connection } from "./connection.js";
import { acceptGhost, acceptWord, ghostField, setGhost } from "./ghost.js";
import { clearFilled, HoleFiller, insertHole } from "./holes.js";
import { languageNamed } from "./languages.js";
import { keepSettings, readSettings } from "./settings.js";
import { Sources } from "./sources.js";
import { Status } from "./status.js";
import { connectTheme } from "./theme.js";
import { completeWhileTyping } from "./typing.js";

const EXAMPLE = `def read_lines(path):
    with open(path) as file:
        return [line.strip() for line in file]


def count_words(path):
`;

const byId = (id) => document.getElementById(id);
const form = byId("settings");
const settings = () => readSettings(form);
const connection = new Connection(() => loadModels("Connected again."));
const status = new Status(byId("status"), () => connection.lose());
const sources = new Sources(byId("sources"));
const parts = { settings, status, sources, stream: streamCompletions };
const typing = completeWhileTyping({ ...parts, isReady: () => connection.isUp && !candidates.isOpen });
const filler = new HoleFiller(parts);
const candidates = new CandidateList(byId("candidates"), parts);
const language = new Compartment();

if (/Mac/.test(navigator.platform)) {
  for (const key of document.querySelectorAll("kbd[data-mac]")) key.textContent = key.dataset.mac;
}
keepSettings(form);
connectTheme(byId("theme"));

const actions = {
  complete: (view) => view.plugin(typing).complete(),
  hole: insertHole,
  fill: (view) => {
    leaveGhost(view);
    filler.fill(view);
  },
  candidates: (view) => {
    leaveGhost(view);
    candidates.open(view);
  },
};
const run = (name) => (view) => {
  actions[name](view);
  return true;
};

const view = new EditorView({
  parent: byId("editor"),
  state: EditorState.create({
    doc: EXAMPLE,
    selection: { anchor: EXAMPLE.length },
    extensions: [
      EditorView.cspNonce.of(document.querySelector("script[nonce]").nonce),
      EditorView.contentAttributes.of({ "aria-label": "Code", "aria-describedby": "keys" }),
      Prec.highest(
        keymap.of([
          { key: "Tab", run: acceptGhost },
          { key: "Ctrl-ArrowRight", mac: "Alt-ArrowRight", run: acceptWord },
          { key: "Escape", run: dismiss },
          { key: "Ctrl-Space", run: run("complete") },
          { key: "Mod-Shift-h", run: run("hole") },
          { key: "Mod-Enter", run: run("fill") },
          { key: "Mod-Shift-Enter", run: run("candidates") },
        ]),
      ),
      history(),
      drawSelection(),
      lineNumbers(),
      highlightActiveLine(),
      bracketMatching(),
      indentOnInput(),
      indentUnit.of("    "),
      EditorView.lineWrapping,
      syntaxHighlighting(classHighlighter),
      language.of(languageNamed(settings().language)),
      keymap.of([...defaultKeymap, ...historyKeymap, indentWithTab]),
      ghostField,
      typing,
      filler.extension,
      EditorView.updateListener.of((update) => candidates.followEditor(update)),
    ],
  }),
});

form.elements.language.addEventListener("input", () =>
  view.dispatch({ effects: language.reconfigure(languageNamed(settings().language)) }),
);
form.elements.api_key.addEventListener("change", () => loadModels("The list of models was loaded."));
for (const button of document.querySelectorAll("button[data-action]")) {
  button.addEventListener("click", () => {
    view.focus();
    actions[button.dataset.action](view);
  });
}
loadModels("");
view.focus();

/** Escape: removes the ghost text, stops filling, or removes the highlight of filled holes. */
function dismiss(target) {
  const hasGhost = target.state.field(ghostField) !== null;
  if (hasGhost) leaveGhost(target);
  return hasGhost || filler.stop("it was stopped") || clearFilled(target);
}

function leaveGhost(target) {
  target.plugin(typing).cancel();
  target.dispatch({ effects: setGhost.of(null) });
}

/** Lists the models of the server in the settings, then shows the message. */
async function loadModels(message) {
  const job = status.start("Loading the list of models…");
  try {
    const names = await modelNames(settings().apiKey);
    form.elements.model.replaceChildren(...names.map((name) => new Option(name)));
    job.note(message);
  } catch (error) {
    job.fail(error);
  }
}
