# tclsh tcllib.tcl URL
package require websocket

proc handle {socket type message} {
    if {$type eq "text"} {
        puts $message
        exit 0
    }
}

::websocket::open [lindex $argv 0] handle
vwait forever
