// The hole is the selection: the text before and after it is sent to the server, and the answer is selected.
const code = document.getElementById("code"), state = document.getElementById("state");
let request = null;

async function fill() {
  if (request) request.abort();
  const mine = request = new AbortController();
  const start = code.selectionStart, prompt = code.value.slice(0, start), suffix = code.value.slice(code.selectionEnd);
  const show = (text) => { code.value = prompt + text + suffix; code.setSelectionRange(start, start + text.length); };
  const begun = performance.now();
  let text = "", finish = "";
  code.readOnly = true;
  state.value = "…";
  try {
    const response = await fetch("/v1/completions", {
      method: "POST", signal: mine.signal, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ prompt, suffix, stream: true, max_tokens: Number(document.getElementById("max").value),
                             temperature: Number(document.getElementById("temperature").value) }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let held = "";;) {
      const { done, value } = await reader.read();
      if (done) break;
      held += value;
      const events = held.split("\n\n");
      held = events.pop();
      for (const event of events) {
        if (event === "data: [DONE]") continue;
        const choice = JSON.parse(event.slice(6)).choices[0];
        text += choice.text;
        finish = choice.finish_reason || finish;
        show(text);
      }
    }
    state.value = `${finish === "stop" ? "done" : "stopped at the token limit"} in ${Math.round(performance.now() - begun)} ms`;
  } catch (failure) {
    if (failure.name !== "AbortError") state.value = failure.message;
  }
  if (request === mine) code.readOnly = false;
  code.focus();
}

document.getElementById("fill").addEventListener("click", fill);
code.addEventListener("keydown", (event) => {
  const has = code.selectionStart !== code.selectionEnd;
  if (event.ctrlKey && event.code === "Space") { event.preventDefault(); fill(); }
  else if (event.key === "Tab" && has) { event.preventDefault(); code.setSelectionRange(code.selectionEnd, code.selectionEnd); }
  else if (event.key === "Escape" && has) { event.preventDefault(); if (request) request.abort(); code.setRangeText(""); }
});
