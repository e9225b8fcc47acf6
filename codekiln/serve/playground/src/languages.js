// Syntax of the languages that the editor knows.

import { cpp } from "@codemirror/lang-cpp";
import { go } from "@codemirror/lang-go";
import { java } from "@codemirror/lang-java";
import { javascript } from "@codemirror/lang-javascript";
import { python } from "@codemirror/lang-python";

const LANGUAGES = { python, javascript, typescript: () => javascript({ typescript: true }), cpp, go, java };

/** The extension for one of the names in the settings; none for plain text. */
export function languageNamed(name) {
  return Object.hasOwn(LANGUAGES, name) ? LANGUAGES[name]() : [];
}
