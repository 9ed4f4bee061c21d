import { useState } from "preact/hooks";
import { BASE } from "../../api/client";
import { tell } from "../../parts/notices";
import { check, options } from "../../state/new-job/check";
import { dataUrl, form } from "../../state/new-job";
import { texts } from "../../texts";
import { commandLine, curl, python } from "./equivalents";
import { requestOf } from "../../state/new-job/request";

const words = texts.newJob;
type Tool = keyof typeof words.tools;
const TOOLS = Object.keys(words.tools) as Tool[];

/** The request as other programs send it. */
export function Equivalents() {
  const [tool, setTool] = useState<Tool>("curl");
  const text = textFor(tool);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      tell(words.copied);
    } catch {
      tell(words.copyFailed, { isProblem: true });
    }
  };
  return (
    <details class="card equivalents">
      <summary>{words.equivalents}</summary>
      <p class="hint">
        {words.equivalentsHint}
        {form.value.bucket.accessId || form.value.bucket.accessSecret ? ` ${words.placeholders}` : ""}
      </p>
      <div class="head">
        <fieldset class="tabs">
          <legend class="hidden">{words.equivalents}</legend>
          {TOOLS.map((each) => (
            <label key={each}>
              <input type="radio" name="tool" checked={tool === each} onChange={() => setTool(each)} />
              <span>{words.tools[each]}</span>
            </label>
          ))}
        </fieldset>
        <button type="button" onClick={() => void copy()}>{words.copy}</button>
      </div>
      <pre tabIndex={0} aria-label={words.tools[tool]}>{text}</pre>
    </details>
  );
}

function textFor(tool: Tool): string {
  const data = check.value?.id ?? dataUrl.value.trim();
  const request = requestOf(form.value, data || "DATA_URL");
  const url = `${location.origin}${BASE}`;
  if (tool === "curl") return curl(request, url);
  if (tool === "python") return python(request, url);
  return commandLine(form.value, data || "FOLDER", location.origin, check.value ? options.value : {});
}
