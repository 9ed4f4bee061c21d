import { useEffect } from "preact/hooks";
import { Link, Redirect, Route, Router, Switch, useRoute } from "wouter-preact";
import { connected } from "./api/events";
import { useHash } from "./hash";
import { Dialogs } from "./parts/dialog";
import { Notices, attempt } from "./parts/notices";
import { Draw } from "./screens/draw";
import { Gallery } from "./screens/gallery";
import { Jobs } from "./screens/jobs";
import { JobPage } from "./screens/job";
import { NewJob } from "./screens/new-job";
import { SignIn, SignInAgain } from "./screens/sign-in";
import { System } from "./screens/system";
import { may, resume, session, signIns, signOut } from "./state/session";
import { texts } from "./texts";

export function App() {
  useEffect(() => void resume(), []);
  if (session.value === undefined) return null;
  return (
    <Router hook={useHash}>
      {session.value === null ? <SignIn /> : <Console />}
      <Notices />
      <Dialogs />
      {session.value && <SignInAgain />}
    </Router>
  );
}

function Console() {
  return (
    <>
      <a class="skip" href="#content" onClick={focusContent}>
        {texts.skip}
      </a>
      <header class="bar">
        <Link href="/" class="brand">
          <img src={ICON} alt="" width="28" height="28" />
          {texts.product}
        </Link>
        <nav aria-label={texts.nav.label}>
          <Page href="/" name={texts.nav.jobs} inside="/jobs/:id" />
          {may("submit") && <Page href="/new" name={texts.nav.newJob} />}
          <Page href="/draw" name={texts.nav.draw} />
          <Page href="/gallery" name={texts.nav.gallery} />
          {may("operate") && <Page href="/system" name={texts.nav.system} />}
        </nav>
        <button class="quiet" onClick={() => void attempt(signOut)}>
          {texts.signIn.out}
        </button>
      </header>
      <p class="banner" role="status" hidden={connected.value}>
        {connected.value ? "" : texts.connection.lost}
      </p>
      <main id="content" tabIndex={-1}>
        <Switch>
          <Route path="/" component={Jobs} />
          {may("submit") && <Route path="/new" component={NewJob} />}
          <Route path="/jobs/:id">{({ id }) => <JobPage key={`${id} ${signIns}`} id={id} />}</Route>
          <Route path="/draw" component={Draw} />
          <Route path="/gallery"><Gallery key={signIns.value} /></Route>
          {may("operate") && <Route path="/system"><System key={signIns.value} /></Route>}
          <Route>
            <Redirect to="/" />
          </Route>
        </Switch>
      </main>
    </>
  );
}

/** @param inside what leads there too, one level deeper. */
function Page({ href, name, inside = href }: { href: string; name: string; inside?: string }) {
  const [isHere] = useRoute(href);
  const [isInside] = useRoute(inside);
  return <Link href={href} {...(isInside || isHere ? { "aria-current": isHere ? "page" : "true" } as const : {})}>{name}</Link>;
}

const ICON = new URL("./icon.svg", import.meta.url).href;

/** A link to an anchor would change the page's address, which names the screen. */
function focusContent(event: Event) {
  event.preventDefault();
  document.getElementById("content")?.focus();
}
