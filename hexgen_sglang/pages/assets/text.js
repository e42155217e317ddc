// What a model or a database wrote, as text that cannot pass for something else.

const INVISIBLE = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;

/** The text with control characters and changes of direction written out. */
export function visible(text) {
  return text.replace(INVISIBLE, (char) => {
    const code = char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return `\u27e8U+${code}\u27e9`;
  });
}

/** A new element that holds this text, and nothing but text. */
export function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = visible(String(text));
  if (className) made.className = className;
  return made;
}
