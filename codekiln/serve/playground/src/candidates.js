// Candidates: several completions at the cursor, with the probability of each token as a color.

import { isCursorAt, setGhost } from "./ghost.js";
import { withoutHoles } from "./holes.js";
import { requestBody } from "./settings.js";
import { tokenCount } from "./status.js";

const N_ALTERNATIVES = 5;

export class CandidateList {
  #view = null;
  #at = 0;
  #candidates = [];
  #selected = 0;
  #token = -1; // the selected token of the selected candidate
  #running = null;

  /** `panel` is the section of the page. The rest are those of the other parts of the page. */
  constructor(panel, { settings, status, sources, stream }) {
    Object.assign(this, { panel, settings, status, sources, stream });
    this.list = panel.querySelector("[role=listbox]");
    this.details = panel.querySelector(".token-details");
    this.list.addEventListener("keydown", (event) => this.#onKey(event));
    panel.querySelector("button").addEventListener("click", () => this.close());
  }

  get isOpen() {
    return !this.panel.hidden;
  }

  /** Requests candidates for the text at the cursor, and shows them while they arrive. */
  async open(view) {
    this.close();
    const { state } = view;
    const settings = this.settings();
    const { from, to } = state.selection.main;
    this.#view = view;
    this.#at = from;
    this.#candidates = [];
    const mine = (this.#running = new AbortController());
    if (from !== to) view.dispatch({ selection: { anchor: from } });
    this.list.replaceChildren();
    this.details.textContent = "";
    this.panel.hidden = false;
    for (let i = 0; i < settings.n; i++) this.#add();
    this.#select(0);
    this.list.focus();
    const job = this.status.start(`Writing ${settings.n} candidates…`);
    const start = performance.now();
    const body = requestBody(settings, withoutHoles(state.sliceDoc(0, from)), withoutHoles(state.sliceDoc(from)));
    try {
      const measured = await this.stream(
        { ...body, n: settings.n, logprobs: N_ALTERNATIVES },
        {
          apiKey: settings.apiKey,
          signal: mine.signal,
          onChoice: (choice) => {
            if (this.#running === mine) this.#receive(choice, performance.now() - start);
          },
        },
      );
      job.done(measured);
    } catch (error) {
      if (this.#running === mine) this.close();
      job.fail(error);
    }
  }

  /** Hides the list, stops its request and returns to the editor. Returns whether the list was shown. */
  close() {
    this.#running?.abort();
    this.#running = null;
    if (!this.isOpen) return false;
    this.panel.hidden = true;
    this.sources.hide();
    this.#view.dispatch({ effects: setGhost.of(null) });
    this.#view.focus();
    return true;
  }

  /** Closes the list if the document was changed or the cursor moved. To be called after each update of the editor. */
  followEditor(update) {
    if (this.isOpen && (update.docChanged || !isCursorAt(update.state, this.#at))) {
      queueMicrotask(() => this.close()); // an update cannot start another one
    }
  }

  #add() {
    const option = document.createElement("li");
    const facts = document.createElement("div");
    const code = document.createElement("code");
    const candidate = { option, facts, code, text: "", tokens: [], ms: null, finish: null };
    const index = this.#candidates.push(candidate) - 1;
    option.id = `candidate-${index}`;
    option.setAttribute("role", "option");
    facts.className = "facts";
    option.append(facts, code);
    option.addEventListener("click", () => {
      this.#select(index);
      this.#accept();
    });
    code.addEventListener("pointerover", (event) => {
      const token = [...code.children].indexOf(event.target);
      if (token >= 0) this.#describe(candidate, token);
    });
    this.list.append(option);
    this.#showFacts(index);
  }

  #receive({ index, text, logprobs, finish_reason: finish, provenance, withheld }, ms) {
    const candidate = this.#candidates[index];
    candidate.text += text;
    logprobs?.tokens.forEach((token, i) => {
      const alternatives = Object.entries(logprobs.top_logprobs?.[i] ?? {});
      candidate.tokens.push({ text: token, logprob: logprobs.token_logprobs[i], alternatives });
      candidate.code.append(heat(token, logprobs.token_logprobs[i]));
    });
    if (finish) Object.assign(candidate, { ms, finish, provenance, withheld });
    this.#showFacts(index);
    if (index === this.#selected) this.#preview();
  }

  #showFacts(index) {
    const { facts, tokens, ms, finish } = this.#candidates[index];
    const parts = [`${index + 1}`];
    if (tokens.length) {
      const mean = tokens.reduce((sum, token) => sum + token.logprob, 0) / tokens.length;
      parts.push(`mean log-probability ${mean.toFixed(2)}`, tokenCount(tokens.length));
    }
    if (finish) parts.push(`${Math.round(ms)} ms`, finish === "length" ? "token limit" : finish);
    facts.textContent = parts.join(" · ");
  }

  #select(index) {
    this.#selected = (index + this.#candidates.length) % this.#candidates.length;
    this.#token = -1;
    this.#candidates.forEach(({ option }, i) => option.setAttribute("aria-selected", String(i === this.#selected)));
    const { option } = this.#candidates[this.#selected];
    this.list.setAttribute("aria-activedescendant", option.id);
    option.scrollIntoView({ block: "nearest" });
    this.#preview();
  }

  #preview() {
    const { text } = this.#candidates[this.#selected];
    this.#view.dispatch({ effects: setGhost.of({ at: this.#at, text }) });
    this.sources.show([this.#candidates[this.#selected]]);
  }

  #accept() {
    const accepted = this.#candidates[this.#selected];
    const { text } = accepted;
    const at = this.#at;
    const view = this.#view;
    this.close();
    this.sources.show([accepted]);
    view.dispatch({
      changes: { from: at, insert: text },
      selection: { anchor: at + text.length },
      scrollIntoView: true,
      userEvent: "input.complete",
    });
  }

  #onKey(event) {
    const actions = {
      ArrowDown: () => this.#select(this.#selected + 1),
      ArrowUp: () => this.#select(this.#selected - 1),
      ArrowRight: () => this.#moveToken(1),
      ArrowLeft: () => this.#moveToken(-1),
      Enter: () => this.#accept(),
      Escape: () => this.close(),
    };
    if (!Object.hasOwn(actions, event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  }

  #moveToken(step) {
    const candidate = this.#candidates[this.#selected];
    if (candidate.tokens.length === 0) return;
    this.#token = Math.min(Math.max(this.#token + step, 0), candidate.tokens.length - 1);
    this.#describe(candidate, this.#token);
  }

  #describe(candidate, index) {
    const { text, logprob, alternatives } = candidate.tokens[index];
    this.list.querySelector(".described")?.classList.remove("described");
    candidate.code.children[index].classList.add("described");
    const others = alternatives
      .filter(([other]) => other !== text)
      .sort((a, b) => b[1] - a[1])
      .map(([other, value]) => `${quoted(other)} ${percent(value)}`);
    const list = others.length ? ` Alternatives: ${others.join(", ")}` : "";
    this.details.textContent = `Token ${index + 1}: ${quoted(text)} ${percent(logprob)}.${list}`;
  }
}

/** A token whose background shows its probability. */
function heat(text, logprob) {
  const span = document.createElement("span");
  span.className = "token";
  span.style.setProperty("--probability", Math.exp(logprob).toFixed(3));
  span.textContent = text.replaceAll("\n", "⏎\n");
  return span;
}

function percent(logprob) {
  return `${(100 * Math.exp(logprob)).toFixed(1)}%`;
}

/** The text in quotes, with its line ends and other control characters as escapes. */
function quoted(text) {
  return JSON.stringify(text);
}
