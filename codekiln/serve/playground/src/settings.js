// The settings form. It is kept in the browser's storage: the API key until the tab is closed, all else for good.

const STORED = "codekiln.settings";
const STORED_KEY = "codekiln.api_key";

/** The values of the form. A number out of its range is replaced by its default. */
export function readSettings(form) {
  const fields = form.elements;
  const number = (name) => Number(fields[name].checkValidity() ? fields[name].value : fields[name].defaultValue);
  return {
    model: fields.model.value,
    language: fields.language.value,
    temperature: number("temperature"),
    topP: number("top_p"),
    maxTokens: number("max_tokens"),
    n: number("n"),
    debounceMs: number("debounce"),
    isWhileTyping: fields.while_typing.checked,
    isSingleLine: fields.single_line.checked,
    hasSuffix: fields.use_suffix.checked,
    apiKey: fields.api_key.value,
  };
}

/** The fields of a request for the text between `prompt` and `suffix`. */
export function requestBody(settings, prompt, suffix) {
  return {
    ...(settings.model && { model: settings.model }),
    prompt,
    ...(settings.hasSuffix && suffix && { suffix }),
    max_tokens: settings.maxTokens,
    temperature: settings.temperature,
    top_p: settings.topP,
    ...(settings.isSingleLine && { stop: ["\n"] }),
  };
}

/** Fills the form with the stored settings, and stores each change. */
export function keepSettings(form) {
  const stored = JSON.parse(localStorage.getItem(STORED) ?? "{}");
  for (const field of storedFields(form)) {
    if (!(field.name in stored)) continue;
    if (field.type === "checkbox") field.checked = stored[field.name];
    else field.value = stored[field.name];
  }
  form.elements.api_key.value = sessionStorage.getItem(STORED_KEY) ?? "";
  form.addEventListener("input", () => {
    const values = storedFields(form).map((field) => [
      field.name,
      field.type === "checkbox" ? field.checked : field.value,
    ]);
    localStorage.setItem(STORED, JSON.stringify(Object.fromEntries(values)));
    sessionStorage.setItem(STORED_KEY, form.elements.api_key.value);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
}

/** Fields that are stored for good. The models depend on the server, and the API key is a secret. */
function storedFields(form) {
  return [...form.elements].filter((field) => field.name && !["api_key", "model"].includes(field.name));
}
