import { render } from "preact";
import { App } from "./app";
import "./styles/base.css";
import "./styles/layout.css";
import "./styles/parts.css";
import "./styles/screens.css";
import "./styles/pictures.css";
import "./styles/new-job.css";
import "./styles/system.css";

render(<App />, document.getElementById("app")!);
