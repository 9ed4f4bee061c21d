import { render } from "preact";
import { App } from "./app";
import "./styles/base.css";
import "./styles/layout.css";
import "./styles/parts.css";
import "./styles/screens.css";
import "./styles/pictures.css";
import "./styles/new-job.css";
import "./styles/system.css";
import "./styles/small-windows.css";

// The browser would leave the page for a file that is dropped beside its place.
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());

render(<App />, document.getElementById("app")!);
